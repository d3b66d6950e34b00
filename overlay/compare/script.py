"""What `page` puts into its pages: style and behaviour, as constant text.

Both are named in the page's Content-Security-Policy by their hashes, so nothing else can run
there: everything that depends on files comes as JSON, and gets into the document as text.
"""

STYLE = """
:root{color-scheme:dark;--paper:#18181b;--raised:#27272a;--ink:#ebebf0;--soft:#a1a1aa;
--mark:#60a5fa}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0;background:var(--paper);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
header,main,footer{padding:0 12px}h1{font-size:16px;margin:10px 0 4px;overflow-wrap:anywhere}
.bar{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;margin:6px 0}
.bar>span{display:flex;gap:4px;align-items:center}
button,select{font:inherit;color:inherit;background:var(--raised);border:1px solid #3f3f46;
border-radius:5px;padding:3px 10px;max-width:40vw}
button[aria-pressed=true]{background:var(--mark);border-color:var(--mark);color:#0b1220}
:focus-visible{outline:2px solid var(--mark);outline-offset:1px}
#frame{position:relative;height:calc(100vh - 240px);min-height:240px;background:#0c0c0e}
#stage{position:absolute;inset:0;overflow:auto;display:flex}
#sheet{position:relative;margin:auto;flex:none;cursor:grab;touch-action:pan-x pan-y}
#sheet.held{cursor:grabbing}
#sheet img{position:absolute;inset:0;width:100%;height:100%;user-select:none;
-webkit-user-select:none;pointer-events:none}
#sheet.sharp img{image-rendering:pixelated}
#handle{position:absolute;width:32px;margin-left:-16px;cursor:ew-resize;touch-action:none;
background:linear-gradient(#fff,#fff) center/2px 100% no-repeat;
filter:drop-shadow(0 0 1px #000) drop-shadow(0 0 1px #000)}
#handle::after{content:"\\2194";position:absolute;top:50%;left:1px;width:30px;height:30px;
margin-top:-15px;border-radius:15px;background:#fff;color:#18181b;text-align:center;
font:20px/30px system-ui,sans-serif}
.name{position:absolute;top:6px;max-width:45%;padding:2px 8px;border-radius:4px;
background:#000b;pointer-events:none;overflow-wrap:anywhere;font-size:13px}
#leftname{left:6px}#rightname{right:20px;text-align:right}
#divider{display:block;width:100%;margin:8px 0;accent-color:var(--mark)}
#legend{display:inline-block;width:min(512px,90vw)}
#legend img{display:block;width:100%;height:14px}
#legend span{display:flex;justify-content:space-between;font-size:12px;color:var(--soft)}
.soft,noscript{color:var(--soft)}
table{border-collapse:collapse;margin:8px 0}
th,td{padding:3px 14px 3px 0;text-align:right;font-variant-numeric:tabular-nums}
th{border-bottom:1px solid #3f3f46;color:var(--soft);font-weight:400}
.word{text-align:left;overflow-wrap:anywhere}a{color:var(--mark)}
tr.now{background:var(--raised)}
kbd{background:var(--raised);border-radius:3px;padding:0 4px}
"""

SCRIPT = """
"use strict";
(() => {
const $ = id => document.getElementById(id);
const frame = $("frame"), stage = $("stage"), sheet = $("sheet"), handle = $("handle");
const images = { left: $("left"), right: $("right"), map: $("map") };
const divider = $("divider"), difference = $("difference"), chosen = { left: 0, right: 1 };
const blocks = [...document.querySelectorAll("script[type='application/json']")];
const zooms = [...document.querySelectorAll("button[data-zoom]")];
let pair, index = -1, zoom = 0;  // 0: fit

// --- what is shown

function open(wanted) {
  index = Math.min(Math.max(wanted, 0), blocks.length - 1);
  pair = JSON.parse(blocks[index].textContent);
  for (const side of ["left", "right"]) {
    const select = $(side + "select");
    select.replaceChildren(...pair.pictures.map((p, i) => new Option(p.name, i)));
    select.parentElement.hidden = pair.pictures.length < 3;
    chosen[side] = Math.min(chosen[side], pair.pictures.length - 1);
  }
  $("pair").value = index;
  $("back").disabled = index === 0;
  $("next").disabled = index === blocks.length - 1;
  for (const row of document.querySelectorAll("tr[data-pair]"))
    row.classList.toggle("now", row.dataset.pair === blocks[index].dataset.pair);
  const [low, half, high] = $("legend").querySelectorAll("b");
  low.textContent = "0";
  half.textContent = pair.end / 2 + " levels";
  high.textContent = pair.end + (pair.beyond ? " or more" : "");
  paint();
}

function paint() {
  for (const side of ["left", "right"]) {
    const picture = pair.pictures[chosen[side]];
    $(side + "select").value = chosen[side];
    images[side].src = picture.data;
    images[side].alt = picture.name;
    $(side + "name").textContent = picture.name + ", " + picture.about;
  }
  const [low, high] = [chosen.left, chosen.right].sort();
  images.map.src = pair.maps[low + "-" + high];
  layout(middle());
}

function choose(side, number) {
  const other = side === "left" ? "right" : "left";
  if (chosen[other] === number) chosen[other] = chosen[side];
  chosen[side] = number;
  paint();
}

// --- where it is shown

function layout([x, y]) {
  sheet.style.width = sheet.style.height = "0";  // no scroll bars while it is fitted
  const [width, height] = pair.size, ratio = window.devicePixelRatio || 1;
  const factor = zoom ? zoom / ratio
    : Math.min(stage.clientWidth / width, stage.clientHeight / height);
  sheet.style.width = width * factor + "px";
  sheet.style.height = height * factor + "px";
  sheet.classList.toggle("sharp", factor * ratio >= 1);
  stage.scrollLeft = x * stage.scrollWidth - stage.clientWidth / 2;
  stage.scrollTop = y * stage.scrollHeight - stage.clientHeight / 2;
  for (const button of zooms)
    button.setAttribute("aria-pressed", String(+button.dataset.zoom === zoom));
  images.map.hidden = $("legend").hidden = !difference.checked;
  handle.hidden = $("leftname").hidden = $("rightname").hidden = difference.checked;
  divide();
}

function middle() {
  return [(stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth,
          (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight];
}

// The part of the sheet that can be seen, in coordinates of the window.
function seen() {
  const all = sheet.getBoundingClientRect(), view = stage.getBoundingClientRect();
  return { all, left: Math.max(all.left, view.left), top: Math.max(all.top, view.top),
    right: Math.min(all.right, view.left + stage.clientWidth),
    bottom: Math.min(all.bottom, view.top + stage.clientHeight) };
}

function divide() {
  const part = seen(), outer = frame.getBoundingClientRect();
  const x = part.left + divider.value / 100 * (part.right - part.left);
  images.left.style.clipPath = "inset(0 " + (part.all.right - x) + "px 0 0)";
  handle.style.left = x - outer.left + "px";
  handle.style.top = part.top - outer.top + "px";
  handle.style.height = part.bottom - part.top + "px";
}

function divideAt(x) {
  const part = seen();
  divider.value = (x - part.left) / (part.right - part.left) * 100;
  divide();
}

function magnify(wanted) {
  const kept = middle();
  zoom = wanted;
  layout(kept);
}

// --- pointers and keys

handle.addEventListener("pointerdown", event => {
  handle.setPointerCapture(event.pointerId);
  event.preventDefault();
  divider.focus({ preventScroll: true });
});
handle.addEventListener("pointermove", event => {
  if (handle.hasPointerCapture(event.pointerId)) divideAt(event.clientX);
});

let held = null;
sheet.addEventListener("pointerdown", event => {
  held = { x: event.clientX, y: event.clientY, moved: false,
    left: stage.scrollLeft, top: stage.scrollTop };
  if (event.pointerType !== "mouse" || event.button !== 0) return;  // fingers scroll by themselves
  sheet.setPointerCapture(event.pointerId);
  sheet.classList.add("held");
});
sheet.addEventListener("pointermove", event => {
  if (!held || !sheet.hasPointerCapture(event.pointerId)) return;
  const x = event.clientX - held.x, y = event.clientY - held.y;
  held.moved = held.moved || Math.hypot(x, y) > 4;
  stage.scrollLeft = held.left - x;
  stage.scrollTop = held.top - y;
});
sheet.addEventListener("lostpointercapture", () => sheet.classList.remove("held"));
sheet.addEventListener("click", event => {
  if (held && !held.moved) divideAt(event.clientX);
  held = null;
});

divider.addEventListener("input", divide);
stage.addEventListener("scroll", divide);
window.addEventListener("resize", () => layout(middle()));
(function watch() {  // another screen may have other pixels, and the window keep its size
  matchMedia("(resolution: " + window.devicePixelRatio + "dppx)").addEventListener("change", () => {
    layout(middle());
    watch();
  }, { once: true });
})();
difference.addEventListener("change", () => layout(middle()));
for (const button of zooms)
  button.addEventListener("click", () => magnify(+button.dataset.zoom));
for (const side of ["left", "right"])
  $(side + "select").addEventListener("change", event => choose(side, +event.target.value));

function go(number) {
  if (number >= 0 && number < blocks.length) location.hash = blocks[number].dataset.pair;
}
function follow() {
  const wanted = blocks.findIndex(block => "#" + block.dataset.pair === location.hash);
  if (wanted !== index && wanted >= 0) open(wanted);
}
window.addEventListener("hashchange", follow);
$("pair").addEventListener("change", event => go(+event.target.value));
$("back").addEventListener("click", () => go(index - 1));
$("next").addEventListener("click", () => go(index + 1));

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  const onDivider = event.target === divider;
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
  if (step && onDivider) {
    divider.value = +divider.value + step * (event.shiftKey ? 10 : 1);
    divide();
  } else if (event.key === "d") {
    difference.checked = !difference.checked;
    layout(middle());
  } else if (event.key === "[") go(index - 1);
  else if (event.key === "]") go(index + 1);
  else if ("01248".includes(event.key)) magnify(+event.key);
  else return;
  event.preventDefault();
});

if (blocks.length) {
  $("viewer").hidden = false;
  $("pairs").hidden = blocks.length < 2;
  follow();
  if (index < 0) open(0);
  divider.focus({ preventScroll: true });
}
})();
"""
