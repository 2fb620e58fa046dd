// Fetches the page again every two seconds and puts its content in place. Without this script the page
// is the same, and is reloaded by hand.
"use strict";

async function refresh() {
  const stale = document.getElementById("stale");
  try {
    const answer = await fetch(location.pathname, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(document.adoptNode(fresh.querySelector("main")));
    stale.hidden = true;
  } catch {
    stale.hidden = false;
  }
}

setInterval(() => {
  if (!document.hidden && getSelection().isCollapsed) refresh();
}, 2000);
