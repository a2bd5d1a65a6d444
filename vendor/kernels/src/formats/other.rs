//! Types that kernels do not know: a function of the caller decodes a row.

use super::{Block, Decode, Weight};
use crate::isa::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Other<'a>(pub Decode<'a>);

impl Weight for Other<'_> {
    const BLOCK: Option<Block> = None;

    #[inline(always)]
    fn decode<S: Simd>(self, _s: S, row: &[u8], out: &mut [f32]) {
        (self.0)(row, out);
    }
}
