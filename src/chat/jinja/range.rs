//! Python's ranges.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr};

/// What `range()` gives: a sequence that has a text of its own.
#[derive(Debug)]
pub struct Range {
    /// First number, the one that it ends before, step
    pub bounds: [i64; 3],
    /// Numbers
    pub n: usize,
}

impl Range {
    fn item(&self, i: usize) -> i64 {
        self.bounds[0] + self.bounds[2] * i as i64
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [start, end, step] = self.bounds;
        match step {
            1 => write!(f, "range({start}, {end})"),
            _ => write!(f, "range({start}, {end}, {step})"),
        }
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let i = key.as_i64()?;
        // A number from the end is negative.
        let i = if i < 0 { i.checked_add_unsigned(self.n as u64)? } else { i };
        usize::try_from(i).ok().filter(|&i| i < self.n).map(|i| self.item(i).into())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.n)
    }
}
