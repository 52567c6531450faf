// Keeps the part of a page that changes up to date: [data-live] holds where to fetch it from.
"use strict";

const part = document.querySelector("[data-live]");
const status = document.querySelector("main [role=status]:empty");

async function refresh() {
  try {
    const answer = await fetch(part.dataset.live);
    if (answer.ok) show(await answer.text());
  } catch {
    // The server may be restarting: the next round will tell.
  }
  follow();
}

function show(html) {
  const focused = document.activeElement.id;
  const before = summary();
  part.innerHTML = html;
  if (focused) document.getElementById(focused)?.focus();
  if (summary() !== before) status.textContent = summary();
}

function summary() {
  return part.querySelector("[data-summary]").textContent;
}

function follow() {
  if (part.querySelector("[data-unfinished]")) setTimeout(refresh, 1000);
}

follow();
