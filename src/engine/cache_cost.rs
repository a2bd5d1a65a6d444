//! What a quantised KV cache costs a model: how far what is expected after each token of a text differs from what a cache in f16 makes of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::divergence::divergences;
use super::options::Options;
use super::session::Session;
use crate::error::Result;
use crate::graph::{CacheType, KV_STEP};
use crate::model::Model;
use crate::tokenizer::Token;

/// Tokens at the end of the text after which logits are compared: they are large, and few of them will do for a mean.
const COMPARED: usize = 64;

/// Mean KL divergence in nats per token of a cache of the options' types from one in f16, after the last tokens of a text, which is read twice.
pub fn cache_cost(model: &Model, options: &Options, text: &[Token], interrupt: &Arc<AtomicBool>) -> Result<f64> {
    let n = COMPARED.min(text.len());
    let logits = |type_k, type_v| {
        let n_ctx = Some(u32::try_from(text.len().next_multiple_of(KV_STEP)).unwrap_or(u32::MAX));
        let options = Options { n_ctx, cache_type_k: type_k, cache_type_v: type_v, ..options.clone() };
        let mut session = Session::new(model, &options, 1, n, interrupt.clone())?;
        let states = session.states(&[text], text.len() - n, false)?;
        let logits = session.outputs(&states)?;
        // Threads that wait would take the processors from the comparison.
        session.pause();
        Ok(logits)
    };
    let base = logits(CacheType::F16, CacheType::F16)?;
    let other = logits(options.cache_type_k, options.cache_type_v)?;
    let all = divergences(&base, &other, model.n_vocab(), options.n_threads_batch);
    Ok(all.iter().map(|d| d.0).sum::<f64>() / all.len() as f64)
}
