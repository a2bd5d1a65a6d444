//! A note where a quantised KV cache harms the model. It is measured when such a cache is first used with a model, and kept.

use std::fs;
use std::path::PathBuf;

use super::answer::Run;
use crate::engine::cache_cost;
use crate::error::Result;
use crate::graph::CacheType;
use crate::model::Model;
use crate::system::places::{self, replace_file};

/// What is read for it, twice: some prose, a list, numbers and a program, as keys of different texts have different outliers.
const TEXT: &str = "\
The lighthouse keeper wrote down the weather every evening. On Monday the wind came from the west, and two fishing boats stayed in the \
harbour; on Tuesday it turned, and by noon the sea was as flat as a table. \"Nothing to report,\" he noted, though he had watched the horizon \
for hours. His daughter, who studied in the city, had asked him for a list of what the boats brought in:

- herring, 340 kg, sold at 1.85 a kilo
- mackerel, 92 kg, sold at 2.40 a kilo
- one old anchor, which nobody wanted

She put the numbers into a small program, because she did not trust her own arithmetic:

def total(catch):
    # weight times price, for each kind of fish
    return sum(weight * price for weight, price in catch)

print(total([(340, 1.85), (92, 2.40)]))  # 849.8

The result was a little more than last week's, but less than in the spring. If the storm that was announced for Friday really came, there would \
be no fish at all, and the keeper would have to light the lamp earlier than usual. He filled the tank, cleaned the glass and wound up the \
clock. Then he sat down by the window, opened the book that she had sent him, and read until the first beam swept over the water.
";

/// Tokens of the text at the most.
const MOST_TOKENS: usize = 256;

/// Tokens times weights of a reading: some two seconds of a few cores.
const WORK: f64 = 3e11;

/// Fewer tokens say little: models so large that they would not do are not measured.
const LEAST_TOKENS: usize = 16;

/// A larger divergence is told, in nats per token: that of Q4_K_M, in which most models are used. Whoever takes it into account for weights to be a
/// quarter of the size would not want to lose more to a cache.
const HARMFUL: f64 = 0.031;

/// Says so if the cache's types cost this model much. That this cannot be measured, or not kept, is no reason for anything else to fail.
pub fn tell_of_harm(run: &Run) {
    let Some(model) = run.model.own() else { return };
    let [k, v] = [run.options.context.cache_type_k, run.options.context.cache_type_v];
    if !(k.is_quantized() || v.is_quantized()) {
        return;
    }
    match cost(run, model) {
        Ok(Some(kl)) if kl > HARMFUL => {
            let better = if [k, v] == [CacheType::Q8_0; 2] { CacheType::F16 } else { CacheType::Q8_0 }.name();
            run.log.warn(&format!(
                "keys in {}, values in {}: this model's answers suffer, KL {kl:.3} against f16, {} (-ctk {better} -ctv {better} costs less)",
                k.name(),
                v.name(),
                model.scale().in_words(kl)
            ));
        }
        Ok(kl) => run.log.trace(&format!("KL of the cache's types against f16: {kl:?}")),
        Err(e) => run.log.trace(&format!("what the cache's types cost is not known: {e}")),
    }
}

/// The divergence, from where it is kept or measured now; `None` if the model is too large for that, or if there is nowhere to keep it.
fn cost(run: &Run, model: &Model) -> Result<Option<f64>> {
    let context = &run.options.context;
    let Some(folder) = places::kv_types(&places::env) else { return Ok(None) };
    let path = folder.join(name(run));
    if let Some(kl) = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<f64>().ok()) {
        return Ok(Some(kl));
    }
    let n = (WORK / model.gguf().n_params().max(1) as f64) as usize;
    if n < LEAST_TOKENS || fs::create_dir_all(&folder).is_err() {
        return Ok(None);
    }
    let mut text = run.tokenizer.encode(TEXT, true, false)?;
    text.truncate(n.min(MOST_TOKENS).min(run.model.n_ctx_train() as usize));
    let kl = cache_cost(model, context, &text, &run.signals.interrupt)?;
    replace_file(&path, 0o666, |mut file| std::io::Write::write_all(&mut file, format!("{kl}\n").as_bytes()))?;
    Ok(Some(kl))
}

/// The file of a model and its cache's types; the number is that of the text and of how it is measured.
fn name(run: &Run) -> PathBuf {
    let context = &run.options.context;
    let (k, v) = (context.cache_type_k.name(), context.cache_type_v.name());
    format!("{:016x}-{k}-{v}-1", run.model.gguf().fingerprint()).into()
}
