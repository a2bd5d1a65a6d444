//! Weights: which tensors a model has, where they lie, and how they get there.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use ggml::{BufferType, Device, MAPPED_ALIGNMENT, Place, Store, TensorId, TensorSpec, Type, Usage};

use super::native::is_direct;
use crate::error::{Error, Kind, Result};
use crate::gguf::{Gguf, TensorInfo};
use crate::prune::reduce::Matrix;
use crate::system::memory;
use crate::weights;

/// Which device computes each layer.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The GPU in use, if any.
    pub gpu: Option<Device>,
    /// First layer on the GPU; layer `n_layer` is the output.
    pub first_gpu_layer: usize,
}

impl Placement {
    /// `n_gpu_layers` layers, counted from the last, on the first GPU; `None` = as many as fit in its free memory.
    pub fn new(gguf: &Gguf, n_layer: usize, n_gpu_layers: Option<u32>) -> Placement {
        let Some(gpu) = Device::gpus().into_iter().next() else {
            return Placement { gpu: None, first_gpu_layer: n_layer + 1 };
        };
        let n = match n_gpu_layers {
            Some(n) => n as usize,
            None => {
                // A fifth is left to the cache and to intermediate results.
                let mut room = gpu.memory().0 as u64 / 5 * 4;
                (0..=n_layer)
                    .rev()
                    .take_while(|&il| {
                        let bytes = layer_bytes(gguf, il, n_layer);
                        room = room.saturating_sub(bytes);
                        room > 0
                    })
                    .count()
            }
        };
        let first_gpu_layer = (n_layer + 1).saturating_sub(n);
        Placement { gpu: (n > 0).then_some(gpu), first_gpu_layer }
    }

    /// The device of a layer.
    pub fn device(&self, il: usize) -> Device {
        match self.gpu {
            Some(gpu) if il >= self.first_gpu_layer && il != Loader::INPUT => gpu,
            _ => Device::cpu(),
        }
    }
}

/// The best memory for a weight `ne` of layer `il`: as llama.cpp, the device's own, then the CPU's layouts (which our own kernels do
/// not read: not for a `native` weight), then plain memory.
pub fn memory_for(
    placement: &Placement,
    ty: Type,
    ne: [u64; 2],
    usage: Usage,
    il: usize,
    native: bool,
) -> Option<(Device, BufferType)> {
    let (cpu, device) = (Device::cpu(), placement.device(il));
    let mut candidates: Vec<(Device, BufferType)> = Vec::new();
    if device != cpu {
        candidates.push((device, device.buffer_type()));
    }
    if !native {
        candidates.extend(cpu.extra_buffer_types().into_iter().map(|b| (cpu, b)));
    }
    candidates.push((cpu, cpu.buffer_type()));
    candidates.into_iter().find(|&(device, memory)| device.supports(memory, ty, ne, usage))
}

/// Whether a tensor that the architecture does not have would change what a model computes: a name of a layer's, or of what comes
/// before or after the layers. Others (of a projector, of a tool) are left alone.
fn is_of_model(name: &str) -> bool {
    ["blk.", "output", "token_", "position_", "rope_"].iter().any(|p| name.starts_with(p))
}

fn layer_bytes(gguf: &Gguf, il: usize, n_layer: usize) -> u64 {
    let prefix = if il < n_layer { format!("blk.{il}.") } else { "output".to_owned() };
    gguf.tensors().iter().filter(|t| t.name.starts_with(&prefix)).map(|t| t.n_bytes).sum()
}

/// Collects the tensors that an architecture asks for, then brings them into memory.
pub struct Loader<'a> {
    gguf: &'a Gguf,
    placement: &'a Placement,
    no_mmap: bool,
    native: bool,
    /// The weights that our own kernels multiply
    multiplied: Vec<usize>,
    specs: Vec<TensorSpec>,
    sources: Vec<&'a TensorInfo>,
    used: std::collections::HashSet<&'a str>,
}

/// Weights in memory.
#[derive(Debug)]
pub struct Weights {
    /// Where they are
    pub store: Rc<Store>,
    /// The tensors in the order in which they were asked for
    pub ids: Vec<TensorId>,
    /// The tensors as the file has them
    pub matrices: HashMap<TensorId, Matrix>,
    /// What our own kernels multiply; and whether a few tokens, without packing
    pub native: HashMap<TensorId, bool>,
    /// Tensors of the file that nothing computes with
    pub ignored: Vec<String>,
}

/// Number of a tensor that was asked for; becomes a [`TensorId`] when the weights are loaded.
#[derive(Debug, Clone, Copy)]
pub struct Wanted(usize);

impl<'a> Loader<'a> {
    /// The layer number of what comes before the layers: always on the CPU, as in llama.cpp.
    pub const INPUT: usize = usize::MAX;

    /// A loader over a checked file.
    /// `native` says whether our own kernels are to multiply what they can.
    pub fn new(gguf: &'a Gguf, placement: &'a Placement, options: &weights::Options, native: bool) -> Loader<'a> {
        let no_mmap = options.no_mmap;
        let (multiplied, specs, sources, used) = Default::default();
        Loader { gguf, placement, no_mmap, native, multiplied, specs, sources, used }
    }

    /// A tensor that the file must have, of shape `ne` (missing dimensions are 1), computed with in layer `il`.
    pub fn require(&mut self, name: &str, ne: &[usize], usage: Usage, il: usize) -> Result<Wanted> {
        self.optional(name, ne, usage, il)?.ok_or_else(|| {
            Error::malformed(format!("tensor '{name}' is missing; the file's architecture needs it: download it again"))
        })
    }

    /// A tensor that the file may have.
    pub fn optional(&mut self, name: &str, ne: &[usize], usage: Usage, il: usize) -> Result<Option<Wanted>> {
        let Some(info) = self.gguf.tensor(name) else { return Ok(None) };
        let shape = |ne: &[u64]| ne.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let expected: Vec<u64> = ne.iter().map(|&n| n as u64).collect();
        if info.ne[..expected.len()] != expected || info.ne[expected.len()..].iter().any(|&n| n != 1) {
            return Err(Error::malformed(format!(
                "tensor '{name}' has the shape [{}], expected [{}] from the hyper-parameters",
                shape(&info.ne[..info.n_dims as usize]),
                shape(&expected)
            )));
        }
        // Gains, biases and frequency factors are read as F32 by ggml's kernels.
        if !matches!(usage, Usage::MulMat | Usage::GetRows) && info.ty != Type::F32 {
            return Err(Error::unsupported(format!("tensor '{name}' has type {}, expected F32", info.ty.name())));
        }
        if !ggml::can_dequantize(info.ty) {
            let message = format!("tensor '{name}' has type {}, expected a type of weights", info.ty.name());
            return Err(Error::unsupported(message));
        }
        if usage == Usage::Rope {
            let mut factors = vec![0.0; info.n_elements() as usize];
            ggml::dequantize_row(info.ty, self.gguf.data(info), &mut factors);
            if let Some((i, f)) = factors.iter().enumerate().find(|(_, f)| !(f.is_finite() && **f > 0.0)) {
                return Err(Error::malformed(format!(
                    "tensor '{name}' has the factor {f} at {i}, expected a positive number"
                )));
            }
        }
        let native = self.native
            && usage == Usage::MulMat
            && info.ty.is_quantized()
            && self.placement.device(il) == Device::cpu()
            // Beyond the layers few tokens are multiplied, which needs rows that can be read where they are.
            && (is_direct(info.ty) || name.starts_with("blk."));
        let place = self.place(info, usage, il, native)?;
        if native {
            self.multiplied.push(self.specs.len());
        }
        self.used.insert(&info.name);
        self.specs.push(TensorSpec { name: name.to_owned(), ty: info.ty, ne: info.ne, place });
        self.sources.push(info);
        Ok(Some(Wanted(self.specs.len() - 1)))
    }

    fn place(&self, info: &TensorInfo, usage: Usage, il: usize, native: bool) -> Result<Place> {
        let found = memory_for(self.placement, info.ty, [info.ne[0], info.ne[1]], usage, il, native);
        let (device, memory) = found.ok_or_else(|| {
            Error::unsupported(format!(
                "tensor '{}' has type {}, with which no device can compute",
                info.name,
                info.ty.name()
            ))
        })?;
        let position = self.gguf.position(info);
        let in_place = !self.no_mmap
            && memory == device.buffer_type()
            && device.computes_in_place()
            && position.is_multiple_of(MAPPED_ALIGNMENT);
        Ok(if in_place { Place::Mapped(device, info.part, position) } else { Place::Buffer(memory) })
    }

    /// Brings the tensors into memory. `progress` is told the share done and may stop the load.
    pub fn finish(
        self,
        n_threads: usize,
        progress: &mut (dyn FnMut(f32) -> ControlFlow<()> + Send),
    ) -> Result<Weights> {
        let unknown = self.gguf.tensors().iter().filter(|t| !self.used.contains(t.name.as_str()));
        let (model, ignored): (Vec<_>, Vec<_>) = unknown.map(|t| t.name.clone()).partition(|n| is_of_model(n));
        if let Some(name) = model.first() {
            return Err(Error::unsupported(format!(
                "this file has a tensor '{name}' that pp-run does not know for architecture '{}': without it the answers would \
                 be wrong",
                self.gguf.metadata().architecture()
            )));
        }
        let in_buffers: Vec<usize> =
            (0..self.specs.len()).filter(|&i| matches!(self.specs[i].place, Place::Buffer(_))).collect();
        let on_host = |i: &&usize| matches!(self.specs[**i].place, Place::Buffer(b) if b.in_program_memory());
        let needed: u64 = in_buffers.iter().filter(on_host).map(|&i| self.sources[i].n_bytes).sum();
        memory::require(needed, "the weights", "use a smaller model or a smaller quantisation")?;

        let out_of_memory = |e: ggml::AllocError| {
            Error::memory(format!(
                "{} of {} memory for the weights could not be had",
                memory::human(e.bytes as u64),
                e.buffer_type
            ))
        };
        let mut store = Store::new(&self.specs, self.gguf.maps()).map_err(out_of_memory)?;
        store.set_weights();
        let ids: Vec<TensorId> = store.ids().collect();
        let data: Vec<(TensorId, &[u8])> =
            in_buffers.iter().map(|&i| (ids[i], self.gguf.data(self.sources[i]))).collect();
        let total: usize = data.iter().map(|d| d.1.len()).sum();
        let done = store.fill(&data, n_threads, &mut |bytes| progress(bytes as f32 / total as f32));
        if !done {
            return Err(Error::new(Kind::Interrupted, "interrupted while loading the model"));
        }
        // What was copied is not read from the file again, unless another tensor is used in place.
        let mapped: Vec<&TensorInfo> = (0..self.specs.len())
            .filter(|&i| matches!(self.specs[i].place, Place::Mapped(..)))
            .map(|i| self.sources[i])
            .collect();
        for &i in &in_buffers {
            let info = self.sources[i];
            if !mapped.iter().any(|m| m.name == info.name) {
                let start = self.gguf.position(info);
                self.gguf.map(info).release(start..start + info.n_bytes as usize);
            }
        }
        if progress(1.0).is_break() {
            return Err(Error::new(Kind::Interrupted, "interrupted while loading the model"));
        }
        let matrix = |(&id, info): (&TensorId, &&TensorInfo)| {
            let start = self.gguf.position(info);
            let range = start..start + info.n_bytes as usize;
            (id, Matrix::mapped(self.gguf.map(info).clone(), range, info.ty, info.ne[0] as usize, info.ne[1] as usize))
        };
        let matrices = ids.iter().zip(&self.sources).map(matrix).collect();
        let native = self.multiplied.iter().map(|&i| (ids[i], is_direct(self.sources[i].ty))).collect();
        Ok(Weights { store: Rc::new(store), ids, matrices, native, ignored })
    }
}

impl Wanted {
    /// The tensor in the store that [`Loader::finish`] returned with these ids.
    pub fn id(self, ids: &[TensorId]) -> TensorId {
        ids[self.0]
    }
}
