// Labels and file names are hostile text: they only ever become textContent or an encoded part of an address.
const $ = id => document.getElementById(id);
const WHY = {
  below_threshold: "The best score is below the threshold.", below_margin: "The two best scores are too close together.",
  unfamiliar: "The picture shows none of the classes.", no_score: "The model's scores are not numbers.", camera_lost: "The camera is lost.",
};
function make(tag, text, name) {
  const item = document.createElement(tag);
  if (text !== undefined) item.textContent = text;
  if (name) item.className = name;
  return item;
}
const label = text => { const item = make("bdi", text); item.dir = "auto"; return item; };
const write = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
const longest = texts => Math.max(...texts.flatMap(text => text.split(/[ -]/)).map(word => word.length));  // the letters of a word: room for it prevents a break
const percent = (share, digits = 1) => share == null ? "–" : `${(100 * share).toFixed(digits)} %`;
const number = value => value == null ? "–" : value.toLocaleString();
const plural = (count, what, more = `${what}s`) => `${number(count)} ${count === 1 ? what : more}`;

function clock(s, seconds = true) {
  const date = new Date(1000 * s), day = new Date(1000 * now()).toDateString() === date.toDateString();
  const time = date.toLocaleTimeString([], {hour: "numeric", minute: "2-digit", ...seconds && {second: "2-digit"}});
  return day ? time : `${date.toLocaleDateString([], {day: "numeric", month: "short"})}, ${time}`;
}
// Redraw only what has changed, so that the reader's place and focus stay.
const drawn = {};
function changed(name, value) {
  const text = JSON.stringify(value) ?? "";
  return drawn[name] !== text && (drawn[name] = text, true);
}
