//! Tokens out: an answer draws them from logits, decides when it ends, and says the text that can be shown so far.

mod answer;
mod draft;
mod draft_model;
mod pull;
mod stop;
mod thoughts;
mod utf8;

pub use answer::{Answer, Guide, Next, Step};
pub use draft::{Draft, Drafts};
pub use draft_model::DraftModel;
pub use pull::Pull;
pub use stop::{Limits, Predict, StopReason};
pub use thoughts::{Part, Thoughts, parted};
pub use utf8::Utf8Stream;
