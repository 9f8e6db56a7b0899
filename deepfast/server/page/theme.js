// Puts the chosen theme on the page before anything is painted. A plain script, because modules run too late.
// In: localStorage. Out: <html data-theme> and <html lang>. Does not know: the rest of the page.
{
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem("deepfast.settings") || "{}") || {};
  } catch {
    // Storage may be forbidden or damaged: the system's theme then.
  }
  if (saved.theme === "light" || saved.theme === "dark") document.documentElement.dataset.theme = saved.theme;
}
