// How many pixels a file declares, from its first bytes: a small file may have more than this tab has memory for.
const HEAD = 1 << 18; // bytes; before a JPEG's size its EXIF may come

// Return the number, or null where it is not found.
export async function declaredPixels(file) {
  try {
    const head = new DataView(await file.slice(0, HEAD).arrayBuffer());
    const size = png(head) ?? jpeg(head) ?? webp(head) ?? gif(head);
    return size ? size[0] * size[1] : null;
  } catch { // cut short, or gone
    return null;
  }
}

function png(head) {
  return head.getUint32(0) === 0x89504e47 ? [head.getUint32(16), head.getUint32(20)] : null;
}

function jpeg(head) {
  if (head.getUint16(0) !== 0xffd8) return null;
  for (let at = 2; head.getUint8(at) === 0xff; at += 2 + head.getUint16(at + 2)) {
    const marker = head.getUint8(at + 1);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return [head.getUint16(at + 7), head.getUint16(at + 5)];
  }
  return null;
}

function webp(head) {
  if (head.getUint32(0) !== 0x52494646 || head.getUint32(8) !== 0x57454250) return null;
  const kind = head.getUint32(12);
  if (kind === 0x56503858) return [24, 27].map((at) => (head.getUint32(at, true) & 0xffffff) + 1); // VP8X
  if (kind === 0x56503820) return [26, 28].map((at) => head.getUint16(at, true) & 0x3fff); // VP8
  const bits = head.getUint32(21, true); // VP8L
  return [(bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1];
}

function gif(head) {
  return head.getUint32(0) >>> 8 === 0x474946 ? [head.getUint16(6, true), head.getUint16(8, true)] : null;
}
