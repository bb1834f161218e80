// Sends a picture (a file or an address) to /predict and shows the answer.
const $ = (id) => document.getElementById(id);
const DOUBTS = { below_threshold: ", which is not certain", unfamiliar: ", but this is like nothing the model knows" };
let latest = 0; // only the answer to the latest question is shown
let shownUrl = null;
let again = null; // the question that waits for a key

$("origin").textContent = location.origin;

$("file").addEventListener("change", () => {
  if ($("file").files[0]) classifyFile($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const url = $("url").value.trim();
  if (url) classify({ headers: { "Content-Type": "application/json" }, body: JSON.stringify({ url }) }, null);
  else $("file").click();
});
for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const type of ["dragleave", "drop"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => {
  if (event.dataTransfer.files[0]) classifyFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files[0]) classifyFile(event.clipboardData.files[0]);
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const answer = await fetch(button.dataset.sample);
    classifyFile(await answer.blob(), button.dataset.sample.split("/").pop());
  });
}
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!key) return;
  if (!/^[\x21-\x7e]+$/.test(key)) { // no header could carry it
    fail("This is no key: keys are letters, digits and signs of ASCII, without a space. Copy it again.");
    return;
  }
  sessionStorage.setItem("key", key); // gone with this tab
  $("key").value = "";
  again();
});
$("heat-on").addEventListener("change", () => { $("heat").hidden = !$("heat-on").checked; });

function classifyFile(file, name) {
  const body = new FormData();
  body.append("file", file, name || file.name);
  classify({ body }, file);
}

async function classify(request, file) {
  const mine = ++latest;
  $("problem").hidden = true;
  $("result").classList.add("waiting");
  try {
    const key = sessionStorage.getItem("key");
    const headers = { ...request.headers, ...(key && { "X-API-Key": key }) };
    const response = await fetch("/predict?heatmap=1", { method: "POST", ...request, headers });
    const answer = await response.json().catch(() => null); // of something in between, such as nginx
    if (mine !== latest) return;
    $("key-form").hidden = response.status !== 401;
    if (response.status === 401) again = () => classify(request, file);
    if (response.ok && answer) show(answer, file);
    else fail(answer?.detail || answer?.title || unsaid(response));
  } catch {
    if (mine === latest) fail("The gateway does not answer. Is it still running?");
  } finally {
    if (mine === latest) $("result").classList.remove("waiting");
  }
}

function show(answer, file) {
  showPicture(file);
  $("label").textContent = answer.label;
  $("note").textContent = `${percent(answer.confidence)} confident` + (DOUBTS[answer.reason] || "");
  $("scores").replaceChildren(...Object.entries(answer.scores).slice(0, 10).map(([label, score]) => {
    const row = document.createElement("li");
    const bar = document.createElement("progress");
    bar.value = score;
    bar.setAttribute("aria-label", label);
    row.append(Object.assign(document.createElement("span"), { textContent: label }), percent(score), bar);
    return row;
  }));
  $("heat").src = answer.heatmap || "";
  $("heat").hidden = !(file && answer.heatmap && $("heat-on").checked);
  $("heat-switch").hidden = !(file && answer.heatmap);
  const { fetch: got, decode, model } = answer.timings_ms;
  $("about").textContent = `${answer.model.name}, version ${answer.model.version} · `
    + `${got} ms to receive, ${decode} ms to decode, ${model} ms in the model`;
  $("model").textContent = `${answer.model.name}, version ${answer.model.version}`;
  $("result").hidden = false;
}

// A picture given by its address is not shown: the page asks no other server for anything.
function showPicture(file) {
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = file ? URL.createObjectURL(file) : null;
  $("picture").hidden = !file;
  if (file) $("shown").src = shownUrl;
}

function fail(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
  $("result").hidden = true;
}

// What stands between this page and the gateway has no words of its own for people.
function unsaid(response) {
  if (response.status === 429) return "Too many requests; try again in a moment.";
  if (response.status === 413) return "The picture is too large for this service; send a smaller one.";
  return `The answer was ${response.status} ${response.statusText}`.trim() + ", and not the gateway's own; try again in a moment.";
}

// No score is ever quite 0 or 1, so none is shown as that.
function percent(share) {
  if (share > 0.999) return "> 99.9 %";
  if (share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}
