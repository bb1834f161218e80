// The list of this visit as CSV or JSON, to be downloaded.
const COLUMNS = ["picture", "label", "confidence", "certain", "reason", "model", "version", "corrected to", "problem"];
const BYTE_ORDER_MARK = "\ufeff"; // without it spreadsheets take UTF-8 for something else

export function csv(pictures) {
  const rows = pictures.map((picture) => {
    const { label, confidence, certain, reason, model } = picture.answer ?? {};
    return [picture.name, label, confidence, certain, reason, model?.name, model?.version, picture.corrected, problemOf(picture)];
  });
  return BYTE_ORDER_MARK + [COLUMNS, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function json(pictures) {
  return JSON.stringify(pictures.map((picture) => {
    const { heatmap, ...answer } = picture.answer ?? {};
    return {
      picture: picture.name,
      ...answer,
      ...(picture.corrected && { corrected_to: picture.corrected }),
      ...(!picture.answer && { problem: problemOf(picture) }),
    };
  }), null, 2) + "\n";
}

// What has no answer says why, so that no row is missing.
function problemOf(picture) {
  if (picture.state === "answered") return undefined;
  return picture.state === "failed" ? picture.note : `${picture.state}, and not answered`;
}

// A spreadsheet takes a text that begins with one of = + - @ for a formula, and runs it. It may also take another sign
// than the comma for the separator, and then a cell begins inside of a text. So an apostrophe goes before what would be
// a formula, at the beginning and after each of the usual separators, with spaces and quotes in between or not.
function cell(value) {
  const text = String(value ?? "").replace(/(^|[;,\t\r\n])(?=["'\s]*[=+\-@])/g, "$1'");
  return `"${text.replaceAll('"', '""')}"`;
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser has begun to read it by then
}
