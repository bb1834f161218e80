// The ways that pictures come in: chosen, dropped, pasted, by their addresses, or the samples.
//
// listenForPictures((pictures, leftOut) => …): each is {name, file} or {name, url}; leftOut says what was left out. Of a
// file, `sample` is the address it is at, and isUnsaved says that it is on no disk.
const $ = (id) => document.getElementById(id);
const PICTURE = /\.(jpe?g|jfif|png|webp|gif|bmp|avif|heic|heif)$/i;
const MOST_FILES = 20_000; // looked at in a folder

export function listenForPictures(take) {
  // Chosen: files, a folder, or a photograph by the telephone's own camera.
  for (const id of ["file", "folder", "photo"]) {
    $(id).addEventListener("change", () => {
      const files = [...$(id).files];
      $(id).value = ""; // so that the same file can be chosen again
      if (id === "folder") takeFolder(files.map((file) => ({ name: file.webkitRelativePath || file.name, file })), take);
      else take(files.map((file) => ({ name: file.name, file, isUnsaved: id === "photo" })));
    });
  }
  const isPhone = matchMedia("(pointer: coarse)").matches;
  $("photo-way").hidden = !isPhone;
  $("folder-way").hidden = isPhone || !("webkitdirectory" in HTMLInputElement.prototype);

  // Dropped: files, folders, or a picture of another page, of which there is an address only.
  const bringsPictures = (event) => event.dataTransfer?.types.some((type) => ["Files", "text/uri-list"].includes(type));
  for (const type of ["dragenter", "dragover"]) {
    document.addEventListener(type, (event) => {
      if (!bringsPictures(event)) return;
      event.preventDefault();
      $("drop").classList.add("over");
    });
  }
  for (const type of ["dragleave", "drop"]) document.addEventListener(type, () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    if (!bringsPictures(event)) return;
    event.preventDefault();
    takeTransfer(event.dataTransfer, take);
  });

  // Pasted: pictures, or addresses, unless they are pasted into a field.
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) takeTransfer(event.clipboardData, take, { isPasted: true });
    else if (!event.target.closest?.("textarea, input:not([type=file], [type=range])")) takeAddresses(event.clipboardData.getData("text"), take);
  });

  // Addresses that are typed in. Without any, the button opens the choice of files.
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!$("url").value.trim()) return $("file").click();
    if (takeAddresses($("url").value, take)) $("url").value = "";
  });
  $("url").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("form").requestSubmit();
  });

  // The samples.
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => takeSample(button.dataset.sample, take));
  }
}

async function takeSample(sample, take) {
  const name = sample.split("/").pop();
  let data = null;
  try {
    const answer = await fetch(sample);
    if (answer.ok) data = await answer.blob();
  } catch { /* the same as an answer that is none */ }
  if (data) take([{ name, file: new File([data], name, { type: "image/jpeg" }), sample }]);
  else take([], "The sample could not be loaded; try again.");
}

// Entries must be asked for before the event ends: afterwards the browser has emptied the list.
async function takeTransfer(transfer, take, { isPasted = false } = {}) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.());
  const files = [...transfer.files];
  const address = transfer.getData("text/uri-list").trim();
  const sample = [...document.querySelectorAll("[data-sample]")].find((button) => button.firstElementChild.src === address);
  if (sample) return takeSample(sample.dataset.sample, take);
  if (!files.length) return takeAddresses(address, take);
  const folders = entries.filter((entry) => entry?.isDirectory);
  const single = files.filter((_, index) => !entries[index]?.isDirectory);
  if (single.length) take(single.map((file) => ({ name: file.name, file, isUnsaved: isPasted && file.name === "image.png" })));
  for (const folder of folders) {
    const found = [];
    try {
      await readFolder(folder, found);
      takeFolder(found, take);
    } catch (error) {
      takeFolder(found, take, `The folder ${folder.name} could not be read to its end (${error.name}).`);
    }
  }
}

async function readFolder(folder, found) {
  const reader = folder.createReader();
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // some at a time
    if (!entries.length) return;
    for (const entry of entries) {
      if (found.length >= MOST_FILES) return;
      if (entry.isDirectory) await readFolder(entry, found);
      else found.push({ name: entry.fullPath.replace(/^\//, ""), file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    }
  }
}

// In a folder there is more than pictures.
function takeFolder(found, take, problem = "") {
  const pictures = found.filter(({ name, file }) => (file.type.startsWith("image/") || PICTURE.test(name)) && !/(^|\/)\./.test(name));
  pictures.sort((one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }));
  const others = found.length - pictures.length;
  const leftOut = others ? `${others} ${others === 1 ? "file that is no picture was" : "files that are no pictures were"} left out.` : "";
  take(pictures, [problem, leftOut].filter(Boolean).join(" "));
}

// Return false if there is no address in the text.
function takeAddresses(text, take) {
  const words = text.split(/\s+/).filter((word) => word && !word.startsWith("#")).map((word) => word.replace(/^www\./i, "https://$&"));
  const urls = words.filter((word) => /^https?:\/\/./i.test(word));
  const others = words.filter((word) => !urls.includes(word));
  if (!urls.length && !others.length) return false;
  const leftOut = others.length ? `An address begins with http:// or https://, and so ${quoteSome(others)} cannot be asked for.` : "";
  take(urls.map((url) => ({ name: url, url })), leftOut);
  return urls.length > 0;
}

function quoteSome(words) {
  const shown = words.slice(0, 3).map((word) => `“${word.slice(0, 60)}”`).join(", ");
  return words.length > 3 ? `${shown} and ${words.length - 3} more` : shown;
}
