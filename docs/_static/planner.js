/* The memory planner in the browser: ftdocs/memory.py once more, term by term. Shapes and constants come from Python
   (docs/_ext/calculator.py writes planner-data.js), and tests/test_calculator.py holds both to the same bytes. */
"use strict";
const planner = (() => {
  const floor = Math.floor, sum = (list) => list.reduce((a, b) => a + b, 0);
  const { constants: C } = PLANNER;

  function derive(shape, s) {
    const full = s.method === "full", size = s.dtype === "fp32" ? 4 : 2, mixed = s.master_weights && full;
    const targets = shape.linears; // all-linear
    const loraParameters = shape.layers * sum(targets.map((l) => s.rank * (l.inputs + l.outputs)));
    const trained = full ? shape.parameters : loraParameters;
    return {
      full, size, trained, targets, autocast: s.master_weights, stream: mixed ? 4 : size, weight: mixed ? 4 : size,
      tokens: s.batch_size * s.seq_len,
      shares: ["fsdp", "zero3"].includes(s.sharding) ? s.gpus : 1,
      stateShares: ["fsdp", "zero2", "zero3"].includes(s.sharding) ? s.gpus : 1,
    };
  }

  function weightBytes(shape, s, d) {
    const adapters = d.full ? 0 : 4 * d.trained;
    if (s.method !== "qlora") return d.weight * shape.parameters + adapters;
    const quantised = shape.layers * sum(shape.linears.map((l) => l.inputs * l.outputs));
    return Math.round(C.nf4 * quantised) + d.size * (shape.parameters - quantised) + adapters;
  }

  function stateBytes(shape, s, d) {
    const own = d.full && s.gpus > 1 && s.sharding.startsWith("zero") && d.weight === 2 ? 4 * d.trained : 0;
    if (s.optimizer.startsWith("paged")) return own;
    if (s.optimizer === "adamw-8bit") return own + Math.round(C.eight_bit * d.trained);
    return own + 2 * (d.full && !own ? d.weight : 4) * d.trained;
  }

  const gradientBytes = (d) => (d.full ? d.weight : 4) * d.trained;

  function norm(shape, d, read = true) {
    const result = d.full && read && !d.autocast ? d.size * shape.hidden : 0;
    if (!shape.gated) return d.stream * shape.hidden + 8 + result;
    if (!d.full) return 4 * shape.hidden + 4;
    const scaled = shape.family.startsWith("gemma") ? 4 : d.stream;
    return 4 * shape.hidden + 4 + scaled * shape.hidden + result;
  }

  function adapterInputs(shape, s, d, linears) {
    if (s.dtype !== "fp32") {
      const size = d.autocast ? d.size : 4;
      return sum(linears.map((l) => size * (l.inputs + s.rank)));
    }
    const shared = {};
    for (const l of linears)
      if (l.name !== shape.ends[0]) shared[shape.ends.includes(l.name) ? l.name : ""] = l.inputs;
    return 4 * (sum(Object.values(shared)) + s.rank * linears.length);
  }

  function halves(shape) {
    const cut = shape.linears.findIndex((l) => l.name === shape.ends[0]) + 1;
    return [shape.linears.slice(0, cut), shape.linears.slice(cut)];
  }

  function keptAround(shape, s, d, linears) {
    let kept = 0;
    if (!d.full) kept += adapterInputs(shape, s, d, linears);
    else if (d.autocast)
      kept += d.size * shape.hidden
        * linears.filter((l) => l.inputs === shape.hidden && !shape.ends.includes(l.name)).length;
    if (shape.norm_count === 4) kept += norm(shape, d, false);
    return kept + (["gpt2", "bert"].includes(shape.family) ? shape.hidden : 0);
  }

  function keptByAttention(shape, s, d) {
    const { size } = d, keys = s.attention === "eager" ? shape.queries : shape.keys;
    let kept = size * (2 * shape.queries + 2 * keys) + 4 * shape.heads;
    if (shape.family === "phi3") kept += size * (shape.queries + shape.keys);
    if (["qwen3", "gemma3_text"].includes(shape.family)) {
      const width = shape.queries + shape.keys, scaled = shape.family === "gemma3_text" ? 4 : size;
      kept += 4 * width + 4 * (shape.heads + shape.kv_heads) + (d.full ? scaled * width : 0);
    }
    return kept + keptAround(shape, s, d, halves(shape)[0]) + norm(shape, d);
  }

  function keptByMlp(shape, s, d) {
    const { size } = d, middle = shape.intermediate;
    let kept = shape.gated ? size * 3 * middle : size * middle * (shape.family === "bert" ? 1 : 4);
    if (d.full) kept += size * middle;
    return kept + keptAround(shape, s, d, halves(shape)[1]) + (shape.norm_count > 1 ? norm(shape, d) : 0);
  }

  const keptByBlock = (shape, s, d) => keptByAttention(shape, s, d) + keptByMlp(shape, s, d);

  const oneSoftmax = (shape, d) => shape.family === "bert" || (shape.family === "gpt2" && !(d.autocast && d.full));

  function scores(shape, s, d) {
    if (s.attention !== "eager") return 0;
    let each = oneSoftmax(shape, d) ? d.size : 4 + (d.size === 2 ? 2 : 0);
    if (shape.family === "gemma2") each += d.size;
    return each * s.batch_size * shape.heads * s.seq_len ** 2;
  }

  function backwardOfAttention(shape, s, d) {
    if (s.attention !== "eager") return 0;
    const each = oneSoftmax(shape, d) ? 2 * d.size : 8 - (d.size === 2 ? 2 : 0);
    return each * s.batch_size * shape.heads * s.seq_len ** 2
      + d.tokens * (d.stream * shape.hidden - keptByMlp(shape, s, d));
  }

  function backwardOfBlock(shape, d) {
    const { size } = d, middle = shape.intermediate, gradients = d.stream * shape.hidden;
    if (d.full) return gradients + size * middle * (shape.gated ? 2 : 1);
    const casts = size === 2 ? (d.autocast ? 8 : 10) : 0; // all-linear: the last layer is adapted too
    return gradients + casts * shape.hidden + size * middle * (d.autocast ? 3 : 2);
  }

  function lossBytes(shape, s, d) {
    if (shape.family === "bert") return 0;
    if (!s.fused_loss) return (12 + (shape.family === "gemma2" ? d.size : 0)) * d.tokens * shape.vocabulary;
    const pieces = Math.ceil(shape.vocabulary / shape.hidden), least = Math.ceil(d.tokens / pieces);
    let rows = 1;
    while (rows < least) rows *= 2;
    return d.tokens * shape.hidden * d.size + rows * shape.vocabulary * (d.size + 4);
  }

  function gatheredBytes(shape, s, d) {
    const trained = gradientBytes(d);
    if (d.shares === 1) return [0, 0];
    const root = d.weight * shape.root, block = floor((weightBytes(shape, s, d) - root) / shape.layers);
    const byBlock = floor((trained - (d.full ? d.weight * shape.root : 0)) / shape.layers);
    return [root + 2 * block, 2 * byBlock];
  }

  function bucketBytes(s, d) {
    if (s.gpus === 1) return [0, 0];
    if (s.sharding === "ddp") return [gradientBytes(d), gradientBytes(d)];
    const bucket = C.bucket * (d.full ? d.weight : d.size);
    return { zero2: [2 * bucket, 0], zero3: [bucket, bucket] }[s.sharding] || [0, 0];
  }

  const dividesFromTheStart = (s) => s.gpus > 1 && s.sharding === "zero3" && !s.cpu_offload;

  function gradientsBefore(s, d) {
    if (s.accumulation === 1 && !dividesFromTheStart(s)) return 0;
    const whole = gradientBytes(d);
    const divides = ["zero2", "zero3", ...(s.sync_each_batch ? ["fsdp"] : [])];
    if (!divides.includes(s.sharding) || s.gpus === 1) return whole;
    return s.cpu_offload ? 0 : floor(whole / s.gpus);
  }

  function moments(shape, s) {
    const d = derive(shape, s), { tokens } = d, L = shape.layers, offload = s.cpu_offload;
    const weights = offload && d.shares > 1 ? 0 : floor(weightBytes(shape, s, d) / d.shares);
    const state = offload ? 0 : floor(stateBytes(shape, s, d) / d.stateShares);
    const number = d.full ? d.weight : 4, byRoot = d.full ? number * shape.root : 0;
    const byBlock = floor((gradientBytes(d) - byRoot) / L), decoder = shape.family !== "bert";
    const kept = tokens * keptByBlock(shape, s, d) + scores(shape, s, d), entry = tokens * d.stream * shape.hidden;
    const held = s.checkpointing ? entry : kept, unused = d.full || s.checkpointing ? 0 : tokens * norm(shape, d);
    const final = tokens * (norm(shape, d) + (d.autocast && d.full ? d.size * shape.hidden : 0));
    const headCopy = d.autocast && d.full && decoder ? 2 * shape.embedding : 0;
    const copies = d.autocast && d.full ? 2 * L * sum(shape.linears.map((l) => l.inputs * l.outputs)) + headCopy : 0;
    const copied = `${s.dtype} copies`;
    const [gathered, reduced] = gatheredBytes(shape, s, d);
    const [buckets, keptBuckets] = bucketBytes(s, d);
    const base = { weights, optimiser: state, "gathered weights": gathered, buckets }, before = gradientsBefore(s, d);
    const divided = d.shares > 1 && before < gradientBytes(d);
    const arrived = (blocks, root = true) => {
      const whole = root ? byRoot : 0;
      if (offload && d.stateShares > 1)
        return d.shares > 1 ? whole : 0;
      return floor((blocks * byBlock) / d.stateShares) + (d.shares > 1 ? whole : floor(whole / d.stateShares));
    };
    let head = d.full && decoder ? number * shape.embedding : 0;
    if (!(d.shares > 1 || d.stateShares === 1)) head = floor(head / d.stateShares);
    const found = [{ name: "the loss's backward", parts: {
      ...base, [copied]: s.checkpointing ? headCopy : copies, gradients: before + (s.fused_loss ? head : 0),
      activations: L * held + final - unused, logits: lossBytes(shape, s, d) } }];
    if (d.shares > 1 && s.sharding === "fsdp")
      found.unshift({ name: "the start of the forward pass", parts: {
        ...base, "gathered weights": gathered + d.weight * shape.root, gradients: before } });
    if (s.checkpointing && copies)
      found.splice(-1, 0, { name: "the end of the forward pass", parts: {
        ...found[found.length - 1].parts, [copied]: copies, logits: floor((lossBytes(shape, s, d) * 10) / 12) } });
    found.push({ name: "the last norm's backward", parts: {
      ...base, [copied]: s.checkpointing ? 0 : copies, gradients: before + head,
      activations: L * held + (shape.gated ? 24 : 3) * tokens * shape.hidden - unused } });
    const moving = Math.max(tokens * backwardOfBlock(shape, d), backwardOfAttention(shape, s, d)), last = shape.linears[shape.linears.length - 1];
    const mlp = d.full ? number * (last.inputs * last.outputs + (last.bias ? last.outputs : 0)) : 0;
    const dequantised = s.method === "qlora" ? d.size * Math.max(...shape.linears.map((l) => l.inputs * l.outputs)) : 0;
    for (const [name, block] of [["the last block's backward", L], ["the first block's backward", 1]])
      found.push({ name, parts: {
        ...base, [copied]: s.checkpointing ? floor(copies / L) : floor((copies * block) / L),
        gradients: (before ? before + (shape.tied || divided ? head : 0) : arrived(L - block, false) + head) + mlp + reduced,
        activations: (s.checkpointing || block > 1 ? (block - 1) * held : 0) + kept + (s.checkpointing ? entry : 0)
          + moving - unused,
        "dequantised weights": dequantised } });
    const lookup = d.full && shape.tied && decoder ? 2 * number * shape.embedding : 0;
    found.push({ name: "the embedding's backward", parts: {
      ...base, gradients: (before ? before + (divided ? byRoot : d.full ? number * shape.embedding : 0) : arrived(L)) + reduced
        + lookup,
      activations: entry } });
    if (!offload) {
      const whole = gradientBytes(d), temporary = s.optimizer === "adamw" ? whole : 0;
      found.push({ name: "the optimiser's step", parts: {
        weights, optimiser: state, gradients: floor(whole / d.stateShares),
        buckets: keptBuckets,
        "the step's temporary": floor(temporary / d.stateShares) } });
    }
    for (const moment of found) moment.total = sum(Object.values(moment.parts));
    return found;
  }

  function need(shape, s) {
    const found = moments(shape, s), last = found[found.length - 1].parts;
    const peak = found.reduce((a, b) => (b.total > a.total ? b : a));
    return { peak, moments: found, resting: last.weights + last.optimiser + bucketBytes(s, derive(shape, s))[1]
      + (dividesFromTheStart(s) ? last.gradients : 0) };
  }

  return { need };
})();
