"use strict";

const SHOWN = 10;
const at = (id) => document.getElementById(id);
const state = { turns: [], info: null, last: null, busy: false, resets: 0 };

/** An element with a class, text and children; nothing is ever parsed as HTML. */
function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/** The JSON answer of a route, or an error with the server's message. */
async function ask(method, path, body) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The server does not answer.");
  }
  const data = await answer.json().catch(() => null);
  if (answer.ok) return { data, headers: answer.headers };
  if (answer.status === 401) at("access").open = true;
  throw new Error(data?.message ?? `The server answered ${answer.status}.`);
}

function tell(error) {
  at("problem").textContent = error ? error.message : "";
  at("problem").hidden = !error;
}

/** The turns that the model reads; persona lines come first, within the first of these. */
function context() {
  const lines = at("persona").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const turns = state.turns.map((turn) => turn.text).slice(-state.info.max_turns);
  if (!lines.length || !turns.length) return turns;
  const persona = lines.map((line) => `your persona: ${line}`);
  return [[...persona, turns[0]].join("\n"), ...turns.slice(1)];
}

function ownCandidates() {
  return [...new Set(at("candidates").value.split("\n").map((line) => line.trim()).filter(Boolean))];
}

/** Whether a route's scores are probabilities: those of /search come from the re-ranker if there is one. */
function areProbabilities(path) {
  return path === "/search" ? state.info.search_calibrated : state.info.calibrated;
}

/** What to send for the conversation so far. */
function request() {
  const texts = ownCandidates();
  const raw_scores = !areProbabilities(texts.length ? "/rerank" : "/search");
  if (texts.length) return { path: "/rerank", body: { context: context(), texts, raw_scores, return_text: true } };
  if (state.info.candidates === null) {
    at("own").open = true;
    throw new Error("This server has no index: write candidates of your own first, one per line.");
  }
  const top_n = Math.min(SHOWN + state.turns.length, state.info.max_top_n);
  return { path: "/search", body: { context: context(), top_n, raw_scores } };
}

/** Ask for the best candidates; those that were said already are left out. */
async function best() {
  const { path, body } = request();
  state.last = { path, body };
  const began = performance.now();
  const { data, headers } = await ask("POST", path, body);
  const list = path === "/search"
    ? data.results.map((one) => ({ text: one.document.text, score: one.relevance_score }))
    : data.map((one) => ({ text: one.text, score: one.score }));
  const said = new Set(state.turns.map((turn) => turn.text));
  const fresh = list.filter((one) => !said.has(one.text));
  return {
    results: (fresh.length ? fresh : list).slice(0, SHOWN),
    meta: data.meta ?? null,
    of: data.meta?.candidates ?? list.length,
    ms: data.meta?.milliseconds ?? Number(headers.get("x-total-time") ?? performance.now() - began),
    cut: headers.get("x-truncated-queries"),
  };
}

async function send(text) {
  if (state.busy || !text.trim()) return;
  const before = at("status").textContent;
  const resets = state.resets;
  busy(true);
  tell(null);
  state.turns.push({ mine: true, text: text.trim() });
  try {
    const found = await best();
    if (state.resets !== resets) return;
    at("say").value = "";
    if (found.results.length) state.turns.push({ mine: false, text: found.results[0].text });
    show(found);
  } catch (error) {
    if (state.resets !== resets) return;
    state.turns.pop();
    at("status").textContent = before;
    tell(error);
  }
  showTurns();
  busy(false);
  at("say").focus();
}

function busy(on) {
  state.busy = on;
  at("send").disabled = on;
  at("results").setAttribute("aria-busy", String(on));
  if (on) at("status").textContent = "Asking…";
}

function showTurns() {
  at("turns").replaceChildren(...state.turns.map((turn) => {
    const item = make("li", turn.mine ? "mine" : "");
    item.append(make("b", "", turn.mine ? "You" : "Model"), turn.text);
    return item;
  }));
  at("turns").scrollTop = at("turns").scrollHeight;
  at("hint").hidden = state.turns.length > 0;
}

function show(found) {
  const facts = [`the best ${found.results.length} of ${found.of.toLocaleString("en")}`, `${found.ms.toFixed(1)} ms`];
  if (found.meta?.reranked) facts.push(`the first ${found.meta.reranked} scored by a second model`);
  else if (found.meta) facts.push(found.meta.certified ? "certified: no better one exists" : "not certified");
  if (found.meta?.method === "certified") facts.push(`${(100 * found.meta.rescored).toFixed(1)}% scored exactly`);
  if (found.cut || state.turns.length > state.info.max_turns + 1) facts.push("the conversation was cut to what the model reads");
  at("status").textContent = facts.join(" · ");
  const asked = state.last.body.context;
  const scores = found.results.map((one) => one.score);
  at("results").replaceChildren(...found.results.map((one, i) => row(one, i, scores, asked)));
  at("legend").hidden = areProbabilities(state.last.path);
  at("legend").textContent = "Scores are the model’s own, bars are relative: this run keeps no map to probabilities.";
}

function row(one, i, scores, asked) {
  const calibrated = areProbabilities(state.last.path);
  const [high, low] = [Math.max(...scores), Math.min(...scores)];
  const share = calibrated ? one.score : high > low ? 0.1 + 0.9 * (one.score - low) / (high - low) : 1;
  const bar = make("i");
  bar.style.width = `${(100 * share).toFixed(1)}%`;
  const track = make("span", "track", bar);
  track.setAttribute("aria-hidden", "true");
  const number = calibrated ? `${(100 * one.score).toFixed(1)}%` : one.score.toFixed(2);
  const button = make("button", "row", make("span", "place", `${i + 1}`), make("span", "", one.text));
  button.type = "button";
  button.append(make("span", "score", number), track);
  const item = make("li", "", button);
  const why = make("div", "why");
  why.id = `why-${i}`;
  why.hidden = true;
  item.append(why);
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", why.id);
  button.addEventListener("click", () => {
    why.hidden = !why.hidden;
    button.setAttribute("aria-expanded", String(!why.hidden));
    if (!why.hidden && !why.childElementCount) explain(why, one, asked);
  });
  return item;
}

/** What is behind a score, and a button that takes the candidate as the reply. */
async function explain(why, one, asked) {
  const say = make("button", "", "Say this instead");
  say.type = "button";
  say.addEventListener("click", () => {
    if (state.turns.length && !state.turns.at(-1).mine) state.turns.at(-1).text = one.text;
    showTurns();
    at("say").focus();
  });
  const reranked = state.info.reranker && state.last.path === "/search";
  if (state.info.explains) {
    const waiting = make("p", "hint", "Asking…");
    why.append(waiting);
    try {
      const { data } = await ask("POST", "/explain", { context: asked, document: one.text });
      why.append(...shares(data, reranked));
    } catch (error) {
      why.append(make("p", "problem", error.message));
    }
    waiting.remove();
  }
  why.append(say);
}

/** The share of each code in the score, and what the largest codes read. */
function shares(data, reranked) {
  const codes = [...data.codes].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  const most = Math.max(...codes.map((code) => Math.abs(code.contribution)), 1e-12);
  const table = make("table", "codes");
  const scale = data.scale === 1 ? "" : `${Number(data.scale.toFixed(3))} × `;
  const whose = reranked ? "First model’s score" : "Score";
  const vectors = codes.length === 1 ? "one context vector" : `${codes.length} context vectors`;
  table.append(make("caption", "", `${whose} ${data.score.toFixed(3)} = ${scale}sum of weight × product over ${vectors}`));
  const head = make("tr");
  for (const [name, side] of [["code", ""], ["weight", "number"], ["product", "number"], ["part of the score", ""]]) {
    const cell = make("th", side, name);
    cell.scope = "col";
    head.append(cell);
  }
  table.append(make("thead", "", head));
  const rows = make("tbody");
  const shown = codes.slice(0, 6);
  for (const code of shown) {
    const bar = make("i", code.contribution < 0 ? "minus" : "");
    bar.style.width = `${(100 * Math.abs(code.contribution) / most).toFixed(1)}%`;
    const track = make("div", "track", bar);
    track.setAttribute("aria-hidden", "true");
    const numbers = [code.weight.toFixed(3), code.product.toFixed(2)].map((text) => make("td", "number", text));
    rows.append(make("tr", "", make("td", "", String(code.code)), ...numbers,
      make("td", "share", `${code.contribution.toFixed(3)} `, track)));
  }
  const rest = codes.slice(6).reduce((sum, code) => sum + code.contribution, 0);
  const found = [table];
  table.append(rows);
  if (codes.length > 6) found.push(make("p", "hint", `${codes.length - 6} other${codes.length > 7 ? "s together" : ""}: ${rest.toFixed(3)}`));
  if (data.reads.length) found.push(reads(data));
  return found;
}

function reads(data) {
  const list = make("dl", "reads");
  for (const one of data.reads) {
    const strongest = Math.max(...one.attention, 1e-12);
    const line = make("dd");
    data.tokens.forEach((token, i) => {
      const word = make("span", "", token);
      word.style.backgroundColor = `rgba(var(--read), ${(0.75 * one.attention[i] / strongest).toFixed(3)})`;
      word.title = `${(100 * one.attention[i]).toFixed(1)}%`;
      line.append(word, " ");
    });
    list.append(make("dt", "", `What code ${one.code} reads (the stronger the shade, the more)`), line);
  }
  return list;
}

/** A word that any shell takes as it is. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

async function copyCurl() {
  if (!state.last) return tell(new Error("Say something first."));
  const key = at("key").value ? ' -H "Authorization: Bearer $POLYJAX_API_KEY"' : "";
  const url = location.origin + state.last.path;
  const body = quoted(JSON.stringify(state.last.body));
  at("line").value = `curl -s ${url} -H 'Content-Type: application/json'${key} -d ${body}`;
  at("command").hidden = false;
  at("line").select();
  try {
    await navigator.clipboard.writeText(at("line").value);
    at("copied").textContent = "It was copied.";
  } catch {
    at("copied").textContent = "It is selected.";
  }
}

async function begin() {
  tell(null);
  try {
    const { data } = await ask("GET", "/info");
    const info = data.polyjax;
    state.info = info;
    at("model").textContent = data.model_id;
    document.title = `polyjax: ${data.model_id}`;
    const facts = [`${info.arch}-encoder`, data.model_dtype];
    facts.push(info.candidates === null ? "no index" : `${info.candidates.toLocaleString("en")} candidates`);
    if (info.reranker) facts.push("re-ranked by a second model");
    at("facts").textContent = facts.join(" · ");
    at("own").open = info.candidates === null;
  } catch (error) {
    tell(error);
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!state.info) await begin();
  if (state.info) send(at("say").value);
});
at("say").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("reset").addEventListener("click", () => {
  state.turns = [];
  state.resets += 1;  // an answer that is still to come belongs to the conversation before
  busy(false);
  at("results").replaceChildren();
  at("status").textContent = "The conversation begins again.";
  tell(null);
  showTurns();
  at("say").focus();
});
at("curl").addEventListener("click", copyCurl);
at("key").addEventListener("change", begin);
begin();
