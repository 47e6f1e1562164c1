// What the person in front of the page may do.

const scopes = new Set((document.body.dataset.scopes ?? "").split(" "));

export const mayOperate = scopes.has("operate");
export const mayInfer = scopes.has("infer");
