//! `--prompt-cache FILE`: what a session takes over from the file, and what is left in it.

use super::answer::Run;
use crate::engine::Timeline;
use crate::engine::prompt_cache::{Found, n_tokens};
use crate::error::Result;
use crate::graph::CacheParams;
use crate::tokenizer::Token;

/// The tokens that the file holds.
#[derive(Debug, Default)]
pub struct Held(Vec<Token>);

/// Number of tokens in the file, so that the context can be made large enough for them; 0 if there is no file of use.
pub fn saved_tokens(run: &Run) -> u64 {
    let context = &run.options.context;
    let (type_k, type_v) = (context.cache_type_k, context.cache_type_v);
    let Some(model) = run.model.own() else { return 0 };
    let cell =
        CacheParams { n_cells: 1, n_seq: 1, type_k, type_v, flash_attn: true, exact: false }.bytes(&model.dims());
    run.options.prompt_cache.as_deref().map_or(0, |path| n_tokens(path, cell))
}

/// Before the first prompt: the empty session takes over the tokens and cells of the file, if there is one. A file that is of no use here is
/// ignored with a warning. A file of another kind is an error, as it must not be overwritten later.
pub fn restore(run: &Run, session: &mut dyn Timeline) -> Result<Held> {
    let Some(path) = &run.options.prompt_cache else { return Ok(Held::default()) };
    run.model.require_own("--prompt-cache")?;
    let session = session.own_mut().expect("checked above");
    match session.restore_state(path)? {
        Found::Nothing => run.log.trace(&format!("{}: there is none yet", path.display())),
        Found::Unusable(why) => run.log.warn(&format!("{}: {why}: ignored", path.display())),
        Found::Restored => {}
    }
    Ok(Held(session.tokens().to_vec()))
}

/// After a prompt: says how many of its tokens came from the file.
pub fn taken(run: &Run, n: usize, held: &Held) {
    if let (Some(path), true) = (&run.options.prompt_cache, !held.0.is_empty()) {
        run.log.trace(&format!("{}: {n} of its {} tokens taken", path.display(), held.0.len()));
    }
}

/// At the end: writes the first `n_prompt` tokens of the session to the file, or with `--prompt-cache-all` all of them, unless the file
/// begins with these tokens already.
pub fn store(run: &Run, session: &dyn Timeline, n_prompt: usize, held: &mut Held) -> Result<()> {
    let options = &run.options;
    let Some(session) = session.own() else { return Ok(()) };
    let Some(path) = options.prompt_cache.as_deref().filter(|_| !options.prompt_cache_ro) else { return Ok(()) };
    let n = if options.prompt_cache_all { session.n_past() } else { n_prompt.min(session.n_past()) };
    let tokens = &session.tokens()[..n];
    if held.0.starts_with(tokens) {
        return Ok(());
    }
    if session.is_mixed() {
        run.log.warn(&format!("{}: is left as it was, as pruning was changed in this text", path.display()));
        return Ok(());
    }
    session.save_state(path, n)?;
    held.0 = tokens.to_vec();
    run.log.trace(&format!("{}: {n} tokens written", path.display()));
    Ok(())
}
