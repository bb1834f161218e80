// The call that the page makes, to be pasted into a terminal or into Python.
import { keyHeader } from "./key.js";

export function curl(picture) {
  const key = hasKey() ? "-H 'X-API-Key: …' " : "";
  if (picture.url)
    return `curl ${key}${location.origin}/predict -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify({ url: picture.url }))}`;
  const call = `curl ${key}-F ${shell(`file=@${formName(picture.name)}`)} ${location.origin}/predict`;
  return picture.sample ? `${fetched(picture)}\n${call}` : call;
}

export function python(picture) {
  const key = hasKey() ? ', key="…"' : "";
  const first = picture.sample ? `# first, in a terminal: ${fetched(picture)}\n` : "";
  return `${first}import loupe\n\nmodel = loupe.connect("${location.origin}"${key})\nmodel.predict(${JSON.stringify(picture.url ?? picture.name)}).label`;
}

const hasKey = () => Object.keys(keyHeader()).length > 0;

const fetched = (picture) => `curl -O ${location.origin}${picture.sample}`;

// In a form curl takes some signs of a name for its own, and leaves out spaces around it, unless the name is quoted.
const formName = (name) => (/^\s|\s$|[;,"\\]/.test(name) ? `"${name.replace(/[\\"]/g, "\\$&")}"` : name);

const shell = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
