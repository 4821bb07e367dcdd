/* A request as a person would write it: for a shell, or with the package openai. Knows both languages' quoting. */

const VARIABLE = "KIMI_API_KEY";

/** url: the API's; the body's attachments are read from files of their names. */
export function curl(url, body, attachments, needsKey) {
  const json = put(JSON.stringify(body, attachmentsAs(attachments), 2).replace(/[\\$`]/g, "\\$&"), ({ name, type }) => {
    return `"data:${type};base64,$(base64 < ${quoted(name)} | tr -d '\\n')"`;
  }, attachments);
  const key = needsKey ? [`  -H "Authorization: Bearer $${VARIABLE}" \\`] : [];
  return [`curl -sN ${quoted(`${url}/chat/completions`)} \\`, "  -H 'Content-Type: application/json' \\", ...key, "  --data-binary @- <<EOF", json, "EOF", ""].join("\n");
}

export function python(url, body, attachments, needsKey) {
  const { fit, ...known } = body;
  const asked = fit === undefined ? known : { ...known, extra_body: { fit } };
  const fields = Object.entries(asked).map(([name, value]) => {
    return `    ${name}=${put(literal(value, 4, attachments), ({ name, type }) => `data_url(${JSON.stringify(name)}, ${JSON.stringify(type)})`, attachments)},`;
  });
  const reads = attachments.length ? READ : [];
  const key = needsKey ? `os.environ["${VARIABLE}"]` : '"none"';
  const imports = [...(attachments.length ? ["import base64"] : []), ...(needsKey ? ["import os"] : [])];
  return [...imports, ...(imports.length ? [""] : []), "from openai import OpenAI", "", `client = OpenAI(base_url=${JSON.stringify(url)}, api_key=${key})`, ...reads, "", "stream = client.chat.completions.create(", ...fields, ")", ...SHOW, ""].join("\n");
}

const READ = ["", "", "def data_url(path, kind):", '    with open(path, "rb") as file:', '        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"', ""];
const SHOW = [
  "for chunk in stream:",
  "    for choice in chunk.choices:",
  '        thought = getattr(choice.delta, "reasoning_content", None)',
  '        print(thought or choice.delta.content or "", end="", flush=True)',
  "print()",
];

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/* While it is written out, the bytes of an attachment are a name that no text of the request can hold by chance. */
const nonce = crypto.getRandomValues(new Uint32Array(4)).join("-");
const stand = (index) => `${nonce}:${index}`;

function attachmentsAs(attachments) {
  const index = new Map(attachments.map((one, at) => [one.url, at]));
  return (_, value) => (typeof value === "string" && index.has(value) ? stand(index.get(value)) : value);
}

/** The written text with every stand-in, and its quotes, replaced. */
function put(text, written, attachments) {
  return text.replace(new RegExp(`"${nonce}:(\\d+)"`, "g"), (_, at) => written(attachments[Number(at)]));
}

const WORDS = new Map([[true, "True"], [false, "False"], [null, "None"]]);

function literal(value, indent, attachments) {
  const inner = " ".repeat(indent + 4);
  const end = " ".repeat(indent);
  const named = attachmentsAs(attachments)("", value);
  if (WORDS.has(named)) return WORDS.get(named);
  if (Array.isArray(named)) return `[\n${named.map((one) => `${inner}${literal(one, indent + 4, attachments)},\n`).join("")}${end}]`;
  if (typeof named === "object") {
    const pairs = Object.entries(named).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${literal(one, indent + 4, attachments)},\n`);
    return `{\n${pairs.join("")}${end}}`;
  }
  return JSON.stringify(named);
}
