//! Tokens out: an answer draws them from logits, decides when it ends, and says the text that can be shown so far.

mod answer;
mod draft;
mod pull;
mod stop;
mod utf8;

pub use answer::{Answer, Next, Step};
pub use draft::{Draft, Drafts};
pub use pull::Pull;
pub use stop::{Limits, Predict, StopReason};
pub use utf8::Utf8Stream;
