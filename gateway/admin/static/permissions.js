// The scopes of the API key that the page is logged in with.

const scopes = new Set((document.body.dataset.scopes ?? "").split(" "));

export const mayOperate = scopes.has("operate");
export const mayInfer = scopes.has("infer");
