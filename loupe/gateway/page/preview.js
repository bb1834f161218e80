// Small pictures to show: an object URL of a JPEG, made one after the other, because each is decoded whole.
import { declaredPixels } from "./pixels.js";

const LONGER_SIDE = 640; // px
const MOST_PIXELS = 40e6; // as many as the gateway takes
let last = Promise.resolve();

// Whether it can be decoded here before the gateway has accepted it.
export async function isHarmless(file) {
  const pixels = await declaredPixels(file);
  return pixels !== null && pixels <= MOST_PIXELS;
}

// Return an object URL, or null if this browser cannot show the file. `wanted()` says if it is still wanted.
export function makePreview(file, wanted) {
  last = last.then(() => (wanted() ? scaleDown(file) : null)).catch(() => null);
  return last;
}

async function scaleDown(file) {
  const image = await createImageBitmap(file);
  const scale = Math.min(1, LONGER_SIDE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // what is transparent is white for the model, too
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  image.close();
  const small = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  canvas.width = 0; // its memory is free at once
  return URL.createObjectURL(small);
}
