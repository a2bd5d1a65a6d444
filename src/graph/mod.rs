//! What graphs are built of.

mod cache_type;

pub use cache_type::CacheType;
