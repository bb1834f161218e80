// Photographs by getUserMedia, in a dialog. Browsers offer it on https and on localhost alone.
const $ = (id) => document.getElementById(id);
const REASONS = {
  NotAllowedError: "The camera may not be used here. Allow it for this page in the browser's settings.",
  NotFoundError: "There is no camera here.",
  NotReadableError: "The camera is in use by another program. End that, and open this again.",
};
let stream = null;
let taken = 0;

// take(picture) returns true if the list had room for it.
export function offerCamera(take) {
  if (!navigator.mediaDevices?.getUserMedia || matchMedia("(pointer: coarse)").matches) return; // phones have their own
  $("camera-way").hidden = false;
  $("camera-way").addEventListener("click", open);
  $("camera").addEventListener("close", stop);
  $("camera-close").addEventListener("click", () => $("camera").close());
  $("shutter").addEventListener("click", async () => {
    const isOn = take({ name: `camera-${taken + 1}.jpg`, file: await photograph(), isUnsaved: true });
    $("camera-says").textContent = isOn ? `Picture ${++taken} is taken and on the list.` : "The list is full. Close this, download the list, and clear it.";
  });
}

async function open() {
  $("camera-says").textContent = "The camera starts …";
  $("shutter").disabled = true;
  $("viewfinder").hidden = false;
  $("camera").showModal();
  try {
    const started = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    stop();
    stream = started;
    if (!$("camera").open) return stop(); // closed before the camera had started
    $("viewfinder").srcObject = stream;
    await $("viewfinder").play();
    $("shutter").disabled = false;
    $("shutter").focus();
    $("camera-says").textContent = "";
  } catch (error) {
    stop();
    $("viewfinder").hidden = true;
    $("camera-says").textContent = REASONS[error.name] || `The camera could not be started (${error.name}).`;
  }
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  $("viewfinder").srcObject = null;
}

async function photograph() {
  const video = $("viewfinder");
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
