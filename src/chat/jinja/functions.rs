//! Functions that make values as Python's do.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, Value};

use super::filters::of_two;
use super::range::Range;
use super::text::failed;

/// Numbers of a range at most, as in jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

/// `range()`
pub fn range(args: Rest<Value>) -> Result<Value, Error> {
    let int =
        |v: &Value| v.as_i64().filter(|n| n.unsigned_abs() < 1 << 62).ok_or_else(|| failed("range() wants integers"));
    let ints = args.iter().map(int).collect::<Result<Vec<i64>, Error>>()?;
    let bounds = match ints[..] {
        [end] => [0, end, 1],
        [start, end] => [start, end, 1],
        [start, end, step] if step != 0 => [start, end, step],
        _ => return Err(failed("range() wants one to three integers, the last of which is not 0")),
    };
    let [start, end, step] = bounds;
    let distance = if step > 0 { end - start } else { start - end };
    let n = u64::try_from(distance).unwrap_or(0).div_ceil(step.unsigned_abs());
    match usize::try_from(n) {
        Ok(n) if n <= MAX_RANGE => Ok(Value::from_object(Range { bounds, n })),
        _ => Err(failed(format!("range() has more than {MAX_RANGE} numbers"))),
    }
}

/// `dict()`: of another dictionary or of pairs, and of arguments by name.
pub fn dict(placed: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = match &placed[..] {
        [] => Vec::new(),
        [map] if map.kind() == ValueKind::Map => {
            map.try_iter()?.map(|key| Ok((key.clone(), map.get_item(&key)?))).collect::<Result<_, Error>>()?
        }
        [items] => items.try_iter()?.map(|pair| of_two(&pair)).collect::<Result<_, Error>>()?,
        _ => return Err(failed("dict() wants one argument that has no name")),
    };
    for name in named.args() {
        pairs.push((name.into(), named.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}
