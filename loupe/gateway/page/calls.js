// The call that the page makes, to be pasted into a terminal or into Python.
import { keyHeader } from "./key.js";

export function curl(picture) {
  const key = hasKey() ? "-H 'X-API-Key: …' " : "";
  if (picture.url)
    return `curl ${key}${location.origin}/predict -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify({ url: picture.url }))}`;
  return `curl ${key}-F ${shell(`file=@${formName(picture.name)}`)} ${location.origin}/predict`;
}

export function python(picture) {
  const key = hasKey() ? ', key="…"' : "";
  return `import loupe\n\nmodel = loupe.connect("${location.origin}"${key})\nmodel.predict(${JSON.stringify(picture.url ?? picture.name)}).label`;
}

const hasKey = () => Object.keys(keyHeader()).length > 0;

// In a form curl takes some signs of a name for its own, unless the name is quoted.
const formName = (name) => (/[;,"\\]/.test(name) ? `"${name.replace(/[\\"]/g, "\\$&")}"` : name);

const shell = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
