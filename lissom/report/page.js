"use strict";
// Without this a point is a link to its figures, and its title says what it is; all tables are there.
const cards = document.querySelector(".cards");
const links = [...document.querySelectorAll('a[href^="#point-"]')];
const goal = (link) => link.getAttribute("href");
const tip = document.body.appendChild(document.createElement("div"));
tip.className = "tip";
tip.hidden = true;

function choose(hash) {
  for (const card of cards.children) card.classList.toggle("shown", `#${card.id}` === hash);
  for (const link of links) {
    if (goal(link) === hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function near(link) {
  for (const other of links) other.classList.toggle("near", link !== null && goal(other) === goal(link));
  tip.hidden = !link?.closest("svg");
  if (tip.hidden) return;
  tip.textContent = link.getAttribute("aria-label");
  const at = link.getBoundingClientRect();
  const left = Math.min(at.right + 6, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${scrollX + Math.max(left, 8)}px`;
  tip.style.top = `${scrollY + at.top - tip.offsetHeight - 6}px`;
}

function pick(link) {
  choose(goal(link));
  history.replaceState(null, "", goal(link));
  document.querySelector(goal(link)).scrollIntoView({ block: "nearest" });
}

for (const link of links) {
  const title = link.querySelector("title");
  if (title) {
    link.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  link.addEventListener("focus", () => near(link));
  link.addEventListener("blur", () => near(null));
  link.addEventListener("click", (event) => {
    event.preventDefault();
    if (!event.detail || !link.closest("svg")) pick(link); // by a key, or in a table
  });
}

// Points may cover one another: in a picture the nearest one is meant.
for (const picture of document.querySelectorAll("svg")) {
  const own = links.filter((link) => picture.contains(link));
  const away = (link, event) => {
    const at = link.getBoundingClientRect();
    return Math.hypot(at.x + at.width / 2 - event.clientX, at.y + at.height / 2 - event.clientY);
  };
  const meant = (event) => {
    const best = own.reduce((one, other) => (away(other, event) < away(one, event) ? other : one));
    return away(best, event) < 24 ? best : null;
  };
  picture.addEventListener("pointermove", (event) => near(meant(event)));
  picture.addEventListener("pointerleave", () => near(null));
  picture.addEventListener("click", (event) => event.detail && meant(event) && pick(meant(event)));
}
cards.classList.add("live");
const asked = [...cards.children].find((card) => `#${card.id}` === location.hash);
choose(`#${(asked ?? cards.querySelector(".first")).id}`);

for (const head of document.querySelectorAll("th[data-order]")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const value = (row) => Number(row.dataset[head.dataset.order]);
    body.append(...[...body.rows].sort((a, b) => value(a) - value(b)));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", "other");
  });
}

for (const command of navigator.clipboard ? document.querySelectorAll(".command") : []) {
  const button = command.appendChild(document.createElement("button"));
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command.firstElementChild.textContent);
    button.textContent = "copied";
  });
}
