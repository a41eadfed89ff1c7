// A classifier.onnx in JavaScript, without tlpipe: npm install, then
//   node classify.mjs classifier.onnx photo.ppm...
// In a browser the same two functions do; there `pixels` comes from a canvas:
//   const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
//   const pixels = data.filter((_, index) => index % 4 !== 3);
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import * as ort from "onnxruntime-web";

/** Opens a model (a file's bytes, or in a browser its address) on WebAssembly. */
export async function open(model) {
  return ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

/** Probabilities of the classes, and the index of the best; `pixels` are bytes, row by row, red, green, blue. The graph resizes. */
export async function classify(session, pixels, width, height) {
  const image = new ort.Tensor("uint8", Uint8Array.from(pixels), [1, height, width, 3]);
  const { probabilities, class_index: index } = await session.run({ image });
  return { index: Number(index.data[0]), probabilities: [...probabilities.data] };
}

/** A binary PPM, the one format that needs no decoder: `P6 width height 255`, then the pixels. */
function readPpm(bytes) {
  const head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 64).toString("latin1"));
  if (!head) throw new Error("not a binary PPM of 8 bits");
  return { pixels: bytes.subarray(head[0].length), width: Number(head[1]), height: Number(head[2]) };
}

const [model, ...pictures] = process.argv.slice(2);
if (model && pictures.length > 0) {
  const session = await open(await readFile(model));
  const labels = (await readFile(join(dirname(model), "labels.txt"), "utf8")).trimEnd().split("\n");
  for (const picture of pictures) {
    const { pixels, width, height } = readPpm(await readFile(picture));
    const { index, probabilities } = await classify(session, pixels, width, height);
    console.log(JSON.stringify({ file: picture, class: labels[index], class_index: index, probabilities }));
  }
} else {
  console.error("usage: node classify.mjs classifier.onnx photo.ppm...");
  process.exitCode = 2;
}
