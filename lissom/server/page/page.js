"use strict";
// One page for what a server has: chats, texts, tensors, what is proven of each model and what it does now.
const $ = (id) => document.getElementById(id);
const make = (tag, text, kind) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const LOOK = 2000;  // milliseconds between looks at the metrics
let key = sessionStorage.getItem("lissom-key") || "";
let kinds = {};     // of each model: "language", "encoder" or "module"
let chosen = null;
let running = [];   // what can be stopped
let sides = [];     // the conversations that are shown
let before = null;  // the metrics of the look before

async function call(path, body, signal) {
  const headers = {"Content-Type": "application/json", ...(key ? {Authorization: "Bearer " + key} : {})};
  const how = body === undefined ? {headers, signal} : {method: "POST", headers, body: JSON.stringify(body), signal};
  const answer = await fetch(path, how);
  if (answer.status === 401) { $("door").hidden = false; $("key").focus(); }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error((told.error && (told.error.message || told.error)) || "the server answers " + answer.status);
  }
  return answer;
}
const json = async (path, body) => (await call(path, body)).json();

function tell(text, trouble) {
  $("state").textContent = text;
  $("state").className = trouble ? "trouble" : "";
}

// models

async function begin() {
  try {
    const listed = (await json("/v1/models")).data, every = Object.keys(await json("/evidence"));
    kinds = {};
    for (const name of every) kinds[name] = "module";
    for (const one of listed) kinds[one.id] = one.vectors ? "encoder" : "language";
  } catch (error) { tell(error.message, true); return; }
  $("door").hidden = true;
  const names = Object.keys(kinds), tabs = $("models");
  tabs.replaceChildren(...names.map((name) => {
    const tab = make("button", name);
    tab.setAttribute("role", "tab");
    tab.onclick = () => choose(name);
    tab.onkeydown = (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (step) choose(names[(names.indexOf(name) + step + names.length) % names.length], true);
    };
    return tab;
  }));
  choose(names.includes(chosen) ? chosen : names[0]);
}

function choose(name, focus) {
  chosen = name;
  before = null;
  for (const tab of $("models").children) {
    const is = tab.textContent === name;
    tab.setAttribute("aria-selected", is);
    tab.tabIndex = is ? 0 : -1;
    if (is && focus) tab.focus();
  }
  $("chat").hidden = kinds[name] !== "language";
  $("vectors").hidden = kinds[name] !== "encoder";
  $("tensors").hidden = kinds[name] !== "module";
  if (kinds[name] === "language") {
    const others = Object.keys(kinds).filter((other) => kinds[other] === "language" && other !== name);
    $("beside").replaceChildren(new Option("nothing", ""), ...others.map((other) => new Option(other, other)));
    $("beside").value = others.length ? others[0] : "";
    $("beside").disabled = !others.length;
    anew();
  }
  if (kinds[name] === "module") form(name).catch((error) => tell(error.message, true));
  prove(name).catch((error) => tell(error.message, true));
  look();
}

// chats

function anew() {
  stop();
  sides = [chosen, $("beside").value].filter(Boolean).map((name) => {
    const whole = make("article", undefined, "side"), head = make("h3", name), rate = make("small", "");
    const turns = make("div", undefined, "turns");
    turns.setAttribute("aria-live", "polite");
    turns.setAttribute("aria-label", "Conversation with " + name);
    turns.tabIndex = 0;
    head.append(rate);
    whole.append(head, turns);
    return {name, whole, rate, turns, messages: []};
  });
  $("sides").replaceChildren(...sides.map((side) => side.whole));
}

function stop() {
  for (const one of running) one.abort();
}

async function answer(side, asked, signal) {
  const said = make("p", ""), begun = performance.now();
  side.messages.push({role: "user", content: asked});
  side.turns.append(make("p", asked, "user"), said);
  const temperature = Number($("temperature").value), most = Number($("tokens").value);
  const body = {model: side.name, messages: side.messages, temperature, max_tokens: most, stream: true,
    stream_options: {include_usage: true}};
  let first = null, used = null;
  try {
    const reader = (await call("/v1/chat/completions", body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const {value, done} = await reader.read();
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: {")) continue;
        const told = JSON.parse(event.slice(6));
        if (told.error) throw new Error(told.error.message);
        const more = told.choices[0] && told.choices[0].delta.content;
        if (more && first === null) first = performance.now();
        if (more) said.textContent += more;
        if (told.usage) used = told.usage;
        side.turns.scrollTop = side.turns.scrollHeight;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") side.turns.append(make("p", error.message, "trouble"));
  }
  side.messages.push({role: "assistant", content: said.textContent});
  if (used && first !== null) {
    const seconds = (performance.now() - first) / 1000, rest = used.completion_tokens - 1;
    const rate = seconds > 0 && rest > 0 ? (rest / seconds).toFixed(0) + " tokens/s, " : "";
    side.rate.textContent = rate + "first after " + ((first - begun) / 1000).toFixed(2) + " s";
  }
}

async function send() {
  const asked = $("prompt").value;
  if (!asked || running.length) return;
  $("prompt").value = "";
  $("send").disabled = true;
  $("stop").disabled = false;
  running = sides.map(() => new AbortController());
  await Promise.all(sides.map((side, place) => answer(side, asked, running[place].signal)));
  running = [];
  $("send").disabled = false;
  $("stop").disabled = true;
  $("prompt").focus();
}

// texts

async function liken() {
  const texts = $("texts").value.split("\n").filter((text) => text.trim());
  if (texts.length < 2) { $("likeness").replaceChildren(make("li", "give two lines or more", "trouble")); return; }
  try {
    const found = (await json("/v1/embeddings", {model: chosen, input: texts})).data.map((one) => one.embedding);
    const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);
    const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
    $("likeness").replaceChildren(...texts.slice(1).map((text, place) =>
      make("li", cosine(found[0], found[place + 1]).toFixed(3) + "  " + text)));
  } catch (error) { $("likeness").replaceChildren(make("li", error.message, "trouble")); }
}

// tensors

const card = (name) => json("/v2/models/" + encodeURIComponent(name));

function zeros(shape) {
  const [size, ...rest] = shape.map((one) => one === -1 ? 1 : one);
  return size === undefined ? 0 : Array.from({length: Math.min(size, 64)}, () => rest.length ? zeros(rest) : 0);
}

const shape = (values) => Array.isArray(values) ? [values.length, ...(values.length ? shape(values[0]) : [])] : [];

async function form(name) {
  const inputs = (await card(name)).inputs, fields = [];
  for (const one of inputs) {
    const label = make("label", one.name + ": " + one.datatype + " [" + one.shape.join(", ") + "], as JSON");
    const field = make("textarea");
    field.rows = 4;
    field.id = "input-" + one.name;
    field.value = JSON.stringify(zeros(one.shape));
    label.htmlFor = field.id;
    fields.push(label, field);
  }
  const row = make("div", undefined, "row");
  row.append(make("button", "Run"));
  $("infer").replaceChildren(...fields, row);
  $("outputs").replaceChildren();
  $("infer").onsubmit = async (event) => {
    event.preventDefault();
    try {
      const given = inputs.map((one) => {
        const data = JSON.parse($("input-" + one.name).value);
        return {name: one.name, datatype: one.datatype, shape: shape(data), data};
      });
      const begun = performance.now();
      const answer = await json("/v2/models/" + encodeURIComponent(name) + "/infer", {inputs: given});
      const spent = (performance.now() - begun).toFixed(1) + " ms";
      $("outputs").replaceChildren(...answer.outputs.flatMap((one) => [
        make("h3", one.name + ": " + one.datatype + " [" + one.shape.join(", ") + "], " + spent),
        make("pre", JSON.stringify(one.data))]));
    } catch (error) { $("outputs").replaceChildren(make("p", error.message, "trouble")); }
  };
}

// what is proven

const percent = (value) => (100 * value).toFixed(2) + " %";

function words(one, name) {
  const whose = name ? " of " + name : "", sure = percent(one.confidence || 0.95);
  const said = "At " + sure + " confidence the drop" + whose + " is at most " + percent(one.drop.high) + "; " +
    percent(one.max_drop) + " were allowed. Seen on " + one.drop.n + " examples: " + percent(one.drop.value) + ".";
  const line = make("p", undefined, "words");
  line.append(make("strong", one.verdict + "  ", one.verdict === "PASS" ? "PASS" : "FAIL"), said);
  return line;
}

function plot(points) {
  const space = "http://www.w3.org/2000/svg", wide = 480, high = 220, edge = 40;
  const drawn = (tag, given, text) => {
    const made = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  };
  const sizes = points.map((point) => point.nbytes), drops = points.map((point) => point.drop);
  const to = (value, all, low, high) => low + (high - low) * (value - Math.min(...all)) / ((Math.max(...all) - Math.min(...all)) || 1);
  const picture = drawn("svg", {viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": "The frontier: size and drop"});
  for (const point of points) {
    const dot = drawn("circle", {cx: to(point.nbytes, sizes, edge, wide - 10), cy: to(point.drop, drops, high - edge, 12), r: 4, fill: "var(--pass)"});
    dot.append(drawn("title", {}, point.name + ": " + (point.nbytes / 1e6).toFixed(1) + " MB, drop " + percent(point.drop)));
    picture.append(dot);
  }
  picture.append(drawn("text", {x: edge, y: high - 8}, "bytes, from " + (Math.min(...sizes) / 1e6).toFixed(1) + " to " + (Math.max(...sizes) / 1e6).toFixed(1) + " MB"));
  picture.append(drawn("text", {x: 4, y: 10}, "drop, up to " + percent(Math.max(...drops))));
  return picture;
}

async function prove(name) {
  const told = (await json("/evidence"))[name] || {}, shown = [], proof = told.certificate;
  if (!proof) shown.push(make("p", "Nothing is claimed of this model: it carries no certificate.", "words"));
  else if (proof.parts && Object.keys(proof.parts).length) for (const [metric, one] of Object.entries(proof.parts)) shown.push(words(one, metric));
  else if (proof.drop) shown.push(words(proof, proof.metric));
  if (told.shadow) {
    const seen = told.shadow.disagreement, line = make("p", undefined, "words" + (told.shadow.alarm ? " trouble" : ""));
    line.textContent = "Beside another model, which sees " + percent(told.shadow.share) + " of the requests: " + (seen
      ? "they differ in " + percent(seen.value) + " of the places (" + percent(seen.low) + " to " + percent(seen.high) + ", " + seen.requests + " requests); " + percent(told.shadow.max_disagreement) + " are allowed."
      : "none yet.") + (told.shadow.rolled_back ? " It has taken over." : "");
    shown.push(line);
  }
  if (told.frontier && told.frontier.length > 1) shown.push(plot(told.frontier));
  const facts = make("dl");
  for (const [label, value] of Object.entries(told.machine || {})) facts.append(make("dt", label.replaceAll("_", " ")), make("dd", String(value)));
  if (facts.children.length) shown.push(facts);
  const all = make("details");
  all.append(make("summary", "All of it: recipe, hashes, parity"), make("pre", JSON.stringify(told, null, 1)));
  shown.push(all);
  $("evidence").replaceChildren(...shown);
}

// now

function figures(text, name) {
  const found = {};
  for (const line of text.split("\n")) {
    const parts = /^([\w:]+)\{(.*)\} (\S+)$/.exec(line);
    if (parts && parts[2].includes(`model_name="${name}"`) && !parts[1].endsWith("_bucket")) found[parts[1]] = (found[parts[1]] || 0) + Number(parts[3]);
  }
  return found;
}

async function look() {
  if (!chosen) return;
  try {
    const text = await (await call("/metrics")).text(), now = {at: performance.now(), ...figures(text, chosen)}, shown = [];
    const add = (label, value) => { if (value !== undefined && !Number.isNaN(value)) shown.push(make("dt", label), make("dd", String(value))); };
    const rate = (name) => before && now[name] !== undefined ? ((now[name] - (before[name] || 0)) / (now.at - before.at) * 1000).toFixed(1) : undefined;
    add("tokens written a second", rate("vllm:generation_tokens_total"));
    add("tokens read a second", rate("vllm:prompt_tokens_total"));
    add("runs a second", rate("lissom_inference_seconds_count"));
    add("running", now["vllm:num_requests_running"]);
    add("waiting", now["vllm:num_requests_waiting"] ?? now["lissom_inference_waiting"]);
    if (now["vllm:kv_cache_usage_perc"] !== undefined) add("cache in use", percent(now["vllm:kv_cache_usage_perc"]));
    if (now["lissom_resident_memory_bytes"]) add("memory", (now["lissom_resident_memory_bytes"] / 1e6).toFixed(0) + " MB");
    add("restarts", now["lissom_engine_restarts_total"]);
    $("now").replaceChildren(...shown);
    before = now;
    const ready = await fetch("/health/ready");
    tell(ready.ok ? "ready" : Object.entries((await ready.json()).reasons).map((one) => one.join(": ")).join("; "), !ready.ok);
  } catch (error) { tell(error.message, true); }
}

$("door").onsubmit = (event) => { event.preventDefault(); key = $("key").value.trim(); sessionStorage.setItem("lissom-key", key); begin(); };
$("ask").onsubmit = (event) => { event.preventDefault(); send(); };
$("prompt").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); } };
$("liken").onsubmit = (event) => { event.preventDefault(); liken(); };
$("stop").onclick = stop;
$("clear").onclick = anew;
$("beside").onchange = anew;
begin();
setInterval(() => { if (!document.hidden) look(); }, LOOK);
