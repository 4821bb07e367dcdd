/* Server-sent events out of bytes. Knows lines and fields; not what an event says. */

/** The data of each event of a response's body; comments, with which a server keeps a stream alive, are left out. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // an event without an empty line behind it was cut off
      kept += value;
      const lines = kept.split(/\r\n|\n|\r(?!$)/);
      kept = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // what is broken already has nothing to cancel
  }
}
