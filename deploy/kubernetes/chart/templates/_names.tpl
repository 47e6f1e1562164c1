{{/* The name of an object: that of the release, and of its part. */}}
{{- define "hostler.name" -}}
{{- printf "%s-%s" (trunc 50 .root.Release.Name) .part -}}
{{- end -}}

{{/* What distinguishes the pods of one part of one release. */}}
{{- define "hostler.selector" -}}
app.kubernetes.io/name: hostler
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "hostler.labels" -}}
{{ include "hostler.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "hostler.image" -}}
image: "{{ .repository }}:{{ .tag }}"
imagePullPolicy: {{ .pullPolicy | default "IfNotPresent" }}
{{- end -}}

{{/* The section that makes gateways and supervisors members of one cluster. */}}
{{- define "hostler.cluster" -}}
{{- $url := .Values.store.url -}}
{{- if .Values.store.enabled -}}
{{- $url = printf "redis://:${env:STORE_PASSWORD}@%s" (include "hostler.name" (dict "root" . "part" "store")) -}}
{{- else if not $url -}}
{{- fail "store.url is required where store.enabled is false, for example redis://:${env:STORE_PASSWORD}@valkey" -}}
{{- end -}}
name: {{ printf "%s.%s" .Release.Namespace .Release.Name | trunc 63 | quote }}
store: {{ $url | quote }}
token_file: /run/secrets/hostler/cluster-token
{{- end -}}

{{/* The configuration files. What the chart sets wins over the values: pods depend on it. */}}
{{- define "hostler.gatewaySettings" -}}
{{- $name := .Release.Name -}}
{{- $hosts := concat (list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace)) .Values.gateway.allowedHosts -}}
{{- if .Values.gateway.ingress.enabled -}}{{- $hosts = concat $hosts .Values.gateway.ingress.hosts -}}{{- end -}}
{{- $set := dict "listen" (list "0.0.0.0:8000") "api_keys_file" "/run/secrets/hostler/keys" "allowed_hosts" ($hosts | uniq) -}}
{{- $set = dict "gateway" $set "cluster" (set (include "hostler.cluster" . | fromYaml) "member" "${env:POD_NAME}") -}}
{{- mergeOverwrite (deepCopy .Values.gateway.settings) $set | toYaml -}}
{{- end -}}

{{- define "hostler.supervisorSettings" -}}
{{- $set := dict "listen" "0.0.0.0:8080" "token_file" "/run/secrets/hostler/supervisor-token" "engine_host" "${env:POD_IP}" "engine_ports" "8100-8199" "slots_dir" "/var/lib/hostler/slots" -}}
{{- $cluster := set (include "hostler.cluster" . | fromYaml) "member" "${env:NODE_NAME}" -}}
{{- mergeOverwrite (deepCopy .Values.supervisor.settings) (dict "supervisor" $set "cluster" $cluster) | toYaml -}}
{{- end -}}

{{- define "hostler.storePassword" -}}
{name: STORE_PASSWORD, valueFrom: {secretKeyRef: {name: {{ .Values.store.secret }}, key: password, optional: {{ not .Values.store.enabled }}}}}
{{- end -}}
