//! Prompts that are not processed twice: `--prompt-cache FILE`, what a session takes over from the file and what is left in it; and the folder
//! of long prompts, which needs no flag.

use super::answer::Run;
use crate::engine::prompt_cache::{Found, n_tokens};
use crate::engine::prompt_store::{LEAST, Store, Taken};
use crate::engine::{Session, Timeline};
use crate::error::Result;
use crate::system::places;
use crate::tokenizer::Token;

/// The tokens that the file holds.
#[derive(Debug, Default)]
pub struct Held(Vec<Token>);

/// Number of tokens in the file, so that the context can be made large enough for them; 0 if there is no file of use.
pub fn saved_tokens(run: &Run) -> u64 {
    run.options.prompt_cache.as_deref().map_or(0, n_tokens)
}

/// Before the first prompt: the empty session takes over what the file holds, if there is one. A file that is of no use here is
/// ignored with a warning. A file of another kind is an error, as it must not be overwritten later.
pub fn restore(run: &Run, session: &mut dyn Timeline) -> Result<Held> {
    let Some(path) = &run.options.prompt_cache else { return Ok(Held::default()) };
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

/// At the end: writes the first `n_prompt` tokens of the session to the file, or with `--prompt-cache-all` all of them, as far as the model
/// can go back to them, unless the file begins with these tokens already.
pub fn store(run: &Run, session: &mut dyn Timeline, n_prompt: usize, held: &mut Held) -> Result<()> {
    let options = &run.options;
    let Some(path) = options.prompt_cache.as_deref().filter(|_| !options.prompt_cache_ro) else { return Ok(()) };
    let n = if options.prompt_cache_all { session.n_past() } else { n_prompt.min(session.n_past()) };
    let n = session.saveable(n);
    let tokens = session.tokens()[..n].to_vec();
    if held.0.starts_with(&tokens) {
        return Ok(());
    }
    if session.own().is_some_and(Session::is_mixed) {
        run.log.warn(&format!("{}: is left as it was, as pruning was changed in this text", path.display()));
        return Ok(());
    }
    session.save_state(path, n)?;
    held.0 = tokens;
    run.log.trace(&format!("{}: {n} tokens written", path.display()));
    Ok(())
}

/// A prompt that is to be kept when it is answered.
#[derive(Debug)]
pub struct Prompt {
    store: Store,
    tokens: Vec<Token>,
    taken: Taken,
}

/// Before a prompt: an empty session takes over what the folder of long prompts has of it. `None` if this prompt is neither looked up nor
/// kept: it is short, or no text's first, or what the model remembers of it depends on more than its tokens.
pub fn recall(run: &Run, session: &mut dyn Timeline, tokens: &[Token]) -> Option<Prompt> {
    let (limit, dir) = (run.options.kept_prompts?, places::prompts(&places::env)?);
    // Which weights a prompt was read with depends on its length, and later on what was seen of it.
    let session = session.own_mut().filter(|s| s.n_past() == 0 && s.prune_identity().is_none())?;
    if tokens.len() <= LEAST {
        return None;
    }
    let store = Store { dir, limit };
    let taken = store.take(session, tokens);
    if let Some(damaged) = &taken.damaged {
        run.log.warn(damaged);
    }
    if taken.n > 0 {
        run.log.note(&format!("{} of {} tokens from the cache", taken.n, tokens.len()));
    }
    Some(Prompt { store, tokens: tokens.to_vec(), taken })
}

/// After its answer: keeps the prompt. That it cannot be kept is no failure of the run.
pub fn keep(run: &Run, session: &dyn Timeline, prompt: Prompt) {
    let Prompt { store, tokens, taken } = prompt;
    // A chat may have changed how is pruned.
    let Some(session) = session.own().filter(|s| s.prune_identity().is_none()) else { return };
    match store.keep(session, &tokens, &taken) {
        Ok(None) => {}
        Ok(Some(n)) => run.log.trace(&format!("{}: {n} tokens kept", store.dir.display())),
        Err(e) => run.log.trace(&format!("this prompt is not kept: {e}")),
    }
}
