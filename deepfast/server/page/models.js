// The models that the server has, local and remote.
// In: /v1/models. Out: their names and their default settings, where the server tells them.
// Does not know: which one is chosen for what.

import { json } from "./api.js";

export let models = [];

/** Ask the server. Throws ApiError or Disconnected. */
export async function loadModels() {
  const answer = await json("/v1/models");
  models = (answer.data ?? []).map((model) => ({
    id: model.id,
    remote: model.owned_by === "remote",
    modes: model.modes ?? ["on", "off"], // of a remote model nothing is known, so nothing is ruled out
    defaults: model.defaults ?? {}, // mode -> sampling parameters
  }));
  return models;
}

export const modelOf = (id) => models.find((model) => model.id === id);
