"use strict";

const REFRESH = 10_000;
const KEPT = 12_000; // milliseconds for which a message stays
const PAGE = { Accept: "text/html", "X-Requested-With": "emailsvc" };

const one = (id) => document.getElementById(id);
// An address with a password in it is none that fetch takes, and a relative one would have it.
const here = (path) => new URL(path, location.origin + location.pathname);

async function ask(method, path, body, headers) {
  const sent = body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const answer = await fetch(here(path), { method, credentials: "same-origin", ...sent, headers: { ...headers, ...sent.headers } });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.detail || `The service answered ${answer.status}.`);
}

const reason = (error) => (error instanceof TypeError ? "The service cannot be reached." : error.message);

/* What is said stays for a while, whatever the refresh brings. */

function keep(element, milliseconds = KEPT) {
  element.dataset.kept = Date.now() + milliseconds;
}

function isKept(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return false;
  return node.dataset.kept === "always" || node.dataset.kept > Date.now();
}

function say(output, text, isBad = false) {
  output.textContent = text;
  output.classList.toggle("bad", isBad);
  keep(output);
}

/* The refresh changes what is different, so that focus, place and open questions stay. */

const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset.key || node.tagName : "text");
const parts = (node) => [...node.childNodes].filter((each) => each.nodeType !== Node.TEXT_NODE || each.data.trim());

function merge(old, fresh) {
  if (isKept(old) || old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (["INPUT", "SELECT"].includes(old.tagName)) return;
  const waiting = parts(old);
  for (const child of parts(fresh)) {
    const found = waiting.findIndex((each) => key(each) === key(child));
    if (found < 0) {
      old.insertBefore(document.importNode(child, true), waiting[0] ?? null);
    } else {
      waiting.splice(0, found).forEach(drop);
      merge(waiting.shift(), child);
    }
  }
  waiting.forEach(drop);
}

function drop(node) {
  if (!isKept(node) && !node.contains(document.activeElement)) node.remove();
}

let away = false;

async function refresh() {
  try {
    const answer = await ask("GET", location.pathname + location.search, undefined, PAGE);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (fresh.querySelector("script").src !== document.querySelector("script").src && !one("question").open) {
      location.reload(); // a new release
      return;
    }
    for (const id of ["main", "as-of"]) merge(one(id), fresh.getElementById(id));
    if (away) one("offline").textContent = "";
    away = false;
  } catch (error) {
    if (!away) one("offline").textContent = `${reason(error)} These are the numbers from then; trying again.`;
    away = true;
  }
  document.body.classList.toggle("away", away);
}

async function refreshForEver() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, REFRESH));
    if (!document.hidden) await refresh();
  }
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());

/* Buttons */

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button && !button.disabled) act(button);
});

async function act(button) {
  const output = button.closest(".acts").querySelector("output");
  const [method, path] = button.dataset.do.split(" ");
  const body = button.dataset.body && JSON.parse(button.dataset.body);
  button.disabled = true;
  try {
    const question = button.dataset.preview ? await previewed(button, method, path, body) : button.dataset.ask;
    const chosen = question ? await put(question, button) : {};
    if (!chosen) return;
    const answer = await ask(method, path, body && { ...body, ...chosen }, button.dataset.into ? PAGE : { "X-Requested-With": "emailsvc" });
    if (button.dataset.into) await show(answer, one(button.dataset.into));
    else await done(button, output, answer);
  } catch (error) {
    say(output, reason(error), true);
  } finally {
    button.disabled = false;
  }
}

class Nothing extends Error {}

async function previewed(button, method, path, body) {
  const would = await (await ask(method, path, { ...body, dry_run: true }, { "X-Requested-With": "emailsvc" })).json();
  const count = would[`would_${button.dataset.preview}`];
  const out = [
    would.uncertain_left_out && `${would.uncertain_left_out} uncertain`,
    would.content_gone && `${would.content_gone} without content`,
  ].filter(Boolean);
  const left = out.length ? ` Left out: ${out.join(", ")}.` : "";
  if (!count) throw new Nothing(`There is nothing to ${button.dataset.preview}.${left}`);
  const verb = button.dataset.preview === "replay" ? "Send" : "Discard";
  return `${verb} ${count.toLocaleString("en")} e-mail${count === 1 ? "" : "s"}${verb === "Send" ? " again" : ""}?${left}`;
}

/** What was chosen with a yes; null for a no. */
function put(question, button) {
  const dialog = one("question");
  const fields = (button.dataset.fields || "").split(" ");
  one("asked").textContent = question;
  one("asked-more").textContent = button.dataset.more || "";
  one("answer-yes").textContent = button.textContent;
  one("answer-yes").className = button.className || "main";
  for (const field of dialog.querySelectorAll("[data-field]")) {
    field.hidden = !fields.includes(field.dataset.field);
    field.querySelector("input").disabled = field.hidden;
    field.querySelector("input").value = "";
  }
  dialog.returnValue = "";
  button.disabled = false; // so that the focus comes back to it
  dialog.showModal();
  (dialog.querySelector("input:enabled") ?? one("answer-no")).focus(); // a stray Enter discards nothing
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? given(dialog) : null), { once: true });
  });
}

function given(dialog) {
  const inputs = [...dialog.querySelectorAll("input:enabled")].filter((input) => input.value !== "");
  return Object.fromEntries(inputs.map((input) => [input.name, input.type === "number" ? input.valueAsNumber : input.value]));
}

async function done(button, output, answer) {
  const told = await answer.json();
  const count = told.replayed ?? told.discarded;
  const text = answer.status === 202 ? `Begun: ${told.total} to move, shown above under "Running"` : button.dataset.done;
  say(output, count > 1 ? `${text}: ${count.toLocaleString("en")}` : text);
  const row = button.closest(".rows > li");
  if (row) settle(row, output);
  await refresh();
}

/** A row whose matter is settled tells so for a while before the refresh takes it away. */
function settle(row, output) {
  keep(row);
  for (const button of output.parentElement.querySelectorAll("button")) button.remove();
  output.tabIndex = -1;
  output.focus();
}

async function show(answer, into) {
  into.innerHTML = await answer.text(); // from our own templates, which show markup as text
  into.tabIndex = -1;
  into.focus();
}

/* Forms */

const filled = (form) => new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method === "dialog") return;
  event.preventDefault();
  if (form.id === "find") location.assign(here(`/stats/search#${filled(form)}`));
  else if (form.id === "search") goTo(filled(form));
  else filter(form, `${form.dataset.query}?${filled(form)}`);
});

async function filter(form, path) {
  try {
    await ask("GET", path, undefined, PAGE);
    location.assign(here(path));
  } catch (error) {
    say(form.querySelector("output"), reason(error), true);
  }
}

/* Searching: what is wanted stands behind the # of the address. */

function goTo(wanted) {
  if (location.hash === `#${wanted}`) find();
  else location.hash = `#${wanted}`;
}

const moment = (value) => value && new Date(value).toISOString();

async function find() {
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const form = one("search");
  for (const input of form.querySelectorAll("[name]")) input.value = wanted[input.name] ?? "";
  const { for: text, ...body } = { ...wanted, since: moment(wanted.since), until: moment(wanted.until) };
  const said = form.querySelector("output");
  say(said, "Searching…");
  try {
    const html = (text && !body.cursor && (await byId(text))) || (await search(text, body));
    one("results").innerHTML = html; // from our own templates, which show markup as text
    const next = one("results").querySelector("[data-cursor]");
    if (next) next.hash = new URLSearchParams({ ...wanted, cursor: next.dataset.cursor });
    say(said, "");
    one("results-head").focus();
  } catch (error) {
    say(said, reason(error), true);
  }
}

async function byId(text) {
  const found = await (await ask("POST", "/emails/lookup", { email_ids: [text] }, { "X-Requested-With": "emailsvc" })).json();
  return found.emails.length ? (await ask("POST", "/emails/lookup", { email_ids: [text] }, PAGE)).text() : null;
}

async function search(text, body) {
  if (text && !text.includes("@")) throw new Nothing("There is no e-mail with this id, and it is no address.");
  return (await ask("POST", "/emails/search", text ? { user: text, ...body } : body, PAGE)).text();
}

/* Times in UTC or as so long ago */

const box = one("show-utc");
box.checked = localStorage.getItem("utc") === "1";
box.addEventListener("change", () => localStorage.setItem("utc", box.checked ? "1" : "0"));

if (one("search")) {
  addEventListener("hashchange", find);
  if (location.href.includes("#")) find();
} else {
  refreshForEver();
}
