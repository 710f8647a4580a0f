/* The form around planner.js: reads the settings, draws bars, and keeps the settings in the address, to be shared. */
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("calculator");
  if (!form) return;
  const out = form.querySelector("output"), fields = [...form.querySelectorAll("[name]")];
  const gb = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
  for (const name of ["model", "gpu"])
    for (const key of Object.keys(name === "model" ? PLANNER.models : PLANNER.gpus))
      form.elements[name].add(new Option(key, key, key === "meta-llama/Llama-3.1-8B" || key === "A10G-24GB",
        key === "meta-llama/Llama-3.1-8B" || key === "A10G-24GB"));
  const refused = []; // what the address asks for and the form does not have
  for (const [key, value] of new URLSearchParams(location.search))
    for (const field of fields.filter((each) => each.name === key)) {
      const offered = field.type === "checkbox" ? ["true", "false"]
        : field.type === "number" ? [] : [...field.options].map((option) => option.value);
      if (field.type === "number") field.value = value;
      else if (!offered.includes(value)) refused.push(`${key}: the address says ${value}, which is none of ${offered.join(", ")}.`);
      else if (field.type === "checkbox") field.checked = value === "true";
      else field.value = value;
    }

  function settings() {
    const s = {};
    for (const field of fields)
      s[field.name] = field.type === "checkbox" ? field.checked : field.type === "number"
        ? Math.floor(Number(field.value)) || 0 : field.value;
    return s;
  }

  function problem(s) { // what ftdocs.memory and ftdocs.plan refuse too
    for (const field of fields) if (field.type === "number" && s[field.name] < 1) return `${field.name}: give at least 1.`;
    for (const field of fields)
      if (field.type === "number" && s[field.name] > PLANNER.constants.most)
        return `${field.name}: give at most ${PLANNER.constants.most}.`;
    if (s.method === "full" && s.dtype === "fp16" && !s.master_weights && !(s.gpus > 1 && s.sharding.startsWith("zero")))
      return "A GradScaler refuses float16 gradients: switch float32 weights on, or choose bf16.";
    if (s.gpus > 1 && s.sharding === "fsdp" && !["adamw", "adamw-fused"].includes(s.optimizer))
      return "bitsandbytes cannot step what FSDP has sharded: choose adamw or adamw-fused.";
    if (s.gpus > 1 && s.sharding === "none") return "Several GPUs: choose how they share.";
    if (s.method === "qlora" && s.dtype === "fp32") return "Quantised weights are multiplied in bf16 or fp16.";
    if (s.method === "qlora" && s.gpus > 1 && s.sharding.startsWith("zero")) return "QLoRA: choose ddp or fsdp.";
    if (s.master_weights && s.dtype === "fp32") return "The weights are float32 already.";
    const shape = PLANNER.models[s.model], sides = shape.linears.map((linear) => Math.min(linear.inputs, linear.outputs));
    if (shape.positions && s.seq_len > shape.positions) return `This model has positions for ${shape.positions} tokens.`;
    if (shape.family === "bert" && s.fused_loss) return "A classifier has two logits a row, and nothing to take apart.";
    if (s.method !== "full" && s.rank > Math.min(...sides)) return `A matrix of this model has rank ${Math.min(...sides)}: give less.`;
    if (s.dtype === "bf16" && PLANNER.without_bf16.includes(s.gpu)) return `${s.gpu} has no units for bfloat16: choose fp16 or fp32.`;
    return "";
  }

  function show(event) {
    if (event) refused.length = 0;
    const s = settings(), wrong = refused[0] || problem(s);
    if (event) history.replaceState(null, "", `?${new URLSearchParams(s)}${location.hash}`);
    out.replaceChildren();
    const line = (text, tag = "p") => out.appendChild(Object.assign(document.createElement(tag), { textContent: text }));
    if (wrong) return void line(wrong);
    const found = planner.need(PLANNER.models[s.model], { ...s, cpu_offload: false });
    const [low, high] = PLANNER.constants.gaps.map((g) => found.peak.total * g + PLANNER.constants.context);
    const room = PLANNER.gpus[s.gpu];
    line(`${gb(found.peak.total)} at ${found.peak.name}`, "strong");
    const held = found.peak.total * PLANNER.constants.held + PLANNER.constants.context;
    line(`With CUDA's own share and up to a tenth for the allocator's gaps a GPU may need ${gb(low)} to ${gb(high)}: ` +
      `${high <= room ? "it fits" : low <= room ? "it may just fit" : "it does not fit"} on ${s.gpu} (${gb(room)}). ` +
      `Software that keeps more held up to ${PLANNER.constants.held} times the count, ${gb(held)}: measure the first step. ` +
      `Between steps it rests at ${gb(found.resting)}.`);
    const list = out.appendChild(document.createElement("dl"));
    for (const [part, bytes] of Object.entries(found.peak.parts).filter(([, size]) => size > 0)) {
      list.appendChild(document.createElement("dt")).textContent = part;
      const value = list.appendChild(document.createElement("dd")), bar = document.createElement("span");
      bar.style.width = `${(100 * bytes) / found.peak.total}%`;
      value.append(bar, gb(bytes));
    }
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
});
