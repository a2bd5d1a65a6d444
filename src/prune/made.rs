//! Tensors that the pass makes out of the weights and keeps, in the memory of the device of their layer.

use std::ops::ControlFlow;

use ggml::{Device, Place, Specs, Store, TensorId, TensorSpec, Type, Usage};

use super::reduce::{column_type, gather_columns, gather_rows, transpose};
use crate::error::{Error, Result};
use crate::system::{memory, parallel};
use crate::weights::{Matrix, Placement};

/// What to do when they do not fit.
pub const ADVICE: &str = "prune without them (/prune off), or use a smaller model";

/// Kept units of a matrix, `width` rows or columns each.
#[derive(Debug, Clone, Copy)]
pub struct Gathered<'a> {
    /// The matrix
    pub source: &'a Matrix,
    /// Numbers of the units
    pub kept: &'a [i32],
    /// Rows or columns of a unit
    pub width: usize,
}

/// What goes into a tensor.
#[derive(Debug)]
pub enum Fill<'a> {
    /// These bytes
    Bytes(Vec<u8>),
    /// The rows of units
    Rows(Gathered<'a>),
    /// The columns of units
    Columns(Gathered<'a>),
    /// All columns, as rows of this type
    Transposed(&'a Matrix, Type),
}

/// Tensors that are to be made.
#[derive(Debug)]
pub struct Made<'a> {
    placement: &'a Placement,
    /// What they are, in messages
    what: &'static str,
    specs: Specs,
    fills: Vec<(TensorId, Device, Fill<'a>)>,
}

impl<'a> Made<'a> {
    /// None yet.
    pub fn new(placement: &'a Placement, what: &'static str) -> Made<'a> {
        Made { placement, what, specs: Specs::new(), fills: Vec::new() }
    }

    /// One of this type and shape for layer `il`.
    pub fn push(
        &mut self,
        name: &str,
        ty: Type,
        ne: [usize; 2],
        usage: Usage,
        il: usize,
        fill: Fill<'a>,
    ) -> Result<TensorId> {
        let ne = [ne[0] as u64, ne[1] as u64, 1];
        let (device, memory) = self
            .placement
            .memory(ty, ne, usage, il, false)
            .ok_or_else(|| Error::unsupported(format!("no device can compute with {} of type {ty}", self.what)))?;
        let name = format!("reduced_{name}-{il}");
        let id = self.specs.push(TensorSpec { name, ty, ne: [ne[0], ne[1], ne[2], 1], place: Place::Buffer(memory) });
        self.fills.push((id, device, fill));
        Ok(id)
    }

    /// The rows or columns of kept units.
    pub fn push_gathered(&mut self, gathered: Gathered<'a>, rows: bool, il: usize) -> Result<TensorId> {
        let Gathered { source, kept, width } = gathered;
        let n = kept.len() * width;
        match rows {
            true => self.push("rows", source.ty(), [source.n_in(), n], Usage::MulMat, il, Fill::Rows(gathered)),
            false => {
                let ne = [n, source.n_out()];
                self.push("columns", column_type(source, n), ne, Usage::MulMat, il, Fill::Columns(gathered))
            }
        }
    }

    /// These floats.
    pub fn push_floats(&mut self, name: &str, values: &[f32], ne: [usize; 2], il: usize) -> Result<TensorId> {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.push(name, Type::F32, ne, Usage::Add, il, Fill::Bytes(bytes))
    }

    /// Makes them on `n_threads` threads; with their bytes. [`crate::error::Kind::Memory`] if they do not fit.
    pub fn make(self, n_threads: usize) -> Result<(Store, u64)> {
        let row = |s: &TensorSpec| s.ty.row_bytes(s.ne[0] as usize).expect("whole blocks");
        let sizes: Vec<(usize, usize)> = self.specs.iter().map(|s| (s.ne[1] as usize, row(s))).collect();
        let bytes = |&(n_rows, row): &(usize, usize)| (n_rows * row) as u64;
        for device in Device::all() {
            let of_device = self.fills.iter().zip(&sizes).filter(|(fill, _)| fill.1 == device);
            memory::require_of(device, of_device.map(|(_, size)| bytes(size)).sum(), self.what, ADVICE)?;
        }
        let n_bytes = sizes.iter().map(bytes).sum();
        let what = self.what;
        let mut store = Store::new(self.specs, Vec::new())
            .map_err(|e| Error::memory(format!("{} for {what} could not be had", memory::human(e.bytes as u64))))?;
        store.set_weights();
        // One tensor after the other: what was gathered of a tensor is given back before the next.
        for ((id, _, fill), (n_rows, row)) in self.fills.into_iter().zip(sizes) {
            let data = match fill {
                Fill::Bytes(bytes) => bytes,
                Fill::Rows(Gathered { source, kept, width }) => parallel::rows(n_rows, row, n_threads, |range, out| {
                    gather_rows(source, kept, width, range, out);
                }),
                Fill::Columns(Gathered { source, kept, width }) => {
                    parallel::rows(n_rows, row, n_threads, |range, out| {
                        gather_columns(source, kept, width, range, out);
                    })
                }
                Fill::Transposed(source, ty) => {
                    parallel::rows(n_rows, row, n_threads, |range, out| transpose(source, ty, range, out))
                }
            };
            store.fill(&[(id, &data)], 1, &mut |_| ControlFlow::Continue(()));
        }
        Ok((store, n_bytes))
    }
}
