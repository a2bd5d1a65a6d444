//! From a file's tensors to weights in memory: an architecture asks for what it needs by name and shape, then all is loaded at once.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::rc::Rc;

use ggml::{Device, MAPPED_ALIGNMENT, Place, Specs, Store, TensorId, TensorSpec, Type, Usage};

use super::kernel::Kernel;
use super::matrix::Matrix;
use super::options::{Kernels, Options};
use super::placement::{INPUT, Placement};
use super::tensors::{Factors, Linear, Norm, Stack, Vector, Weight};
use crate::error::{Error, Kind, Result};
use crate::gguf::{Gguf, TensorInfo};
use crate::system::memory::{self, Needs};

/// Collects the tensors that an architecture asks for, then brings them into memory.
pub struct Loader<'a> {
    gguf: &'a Gguf,
    placement: &'a Placement,
    options: &'a Options,
    /// Layers; what has this number comes after them
    n_layer: usize,
    specs: Specs,
    /// Where each comes from, in the order of the specs
    sources: Vec<(TensorId, &'a TensorInfo)>,
    /// Memory for those that do not stay in the file
    needs: Needs,
    used: HashSet<&'a str>,
}

/// Weights in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Where they are
    pub store: Rc<Store>,
    /// Tensors of the file that nothing computes with
    pub ignored: Vec<String>,
}

impl<'a> Loader<'a> {
    /// A loader over a checked file.
    pub fn new(gguf: &'a Gguf, placement: &'a Placement, options: &'a Options, n_layer: usize) -> Loader<'a> {
        let (specs, sources, needs, used) = Default::default();
        Loader { gguf, placement, options, n_layer, specs, sources, needs, used }
    }

    /// A matrix `NAME.weight` that the file must have, and its bias `NAME.bias`, if it has one: of layer `il`.
    pub fn linear(&mut self, name: &str, n_in: usize, n_out: usize, il: usize) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), [n_in, n_out], il)?;
        let bias = self.vector_if_any(&format!("{name}.bias"), n_out, Usage::Add, il)?;
        Ok(Linear { weight, bias })
    }

    /// Matrices `[n_in, n_out]` that lie one below the other in the tensor `NAME.weight`, which the file must have: of layer `il`.
    pub fn fused<const N: usize>(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: [usize; N],
        il: usize,
    ) -> Result<[Linear; N]> {
        let Linear { weight, bias } = self.linear(name, n_in, n_out.iter().sum(), il)?;
        if bias.is_some() {
            let message = format!("tensor '{name}.bias': pp-run knows fused matrices without a bias only");
            return Err(Error::unsupported(message));
        }
        let mut end = 0;
        Ok(n_out.map(|n| {
            let rows = end..end + n;
            end = rows.end;
            let weight = Weight { rows: weight.rows.part(rows.clone()), among: Some(rows), ..weight.clone() };
            Linear { weight, bias: None }
        }))
    }

    /// Queries, keys and values of layer `il`: three matrices, or one that has the rows of all.
    pub fn qkv(&mut self, n_embd: usize, n_q: usize, n_kv: usize, il: usize) -> Result<[Linear; 3]> {
        let fused = format!("blk.{il}.attn_qkv");
        if self.gguf.tensor(&format!("{fused}.weight")).is_some() {
            return self.fused(&fused, n_embd, [n_q, n_kv, n_kv], il);
        }
        let mut linear = |name: &str, n_out: usize| self.linear(&format!("blk.{il}.{name}"), n_embd, n_out, il);
        Ok([linear("attn_q", n_q)?, linear("attn_k", n_kv)?, linear("attn_v", n_kv)?])
    }

    /// A matrix that the file must have.
    pub fn matrix(&mut self, name: &str, ne: [usize; 2], il: usize) -> Result<Weight> {
        self.matrix_if_any(name, ne, il)?.ok_or_else(|| missing(name))
    }

    /// A matrix that the file may have.
    pub fn matrix_if_any(&mut self, name: &str, ne: [usize; 2], il: usize) -> Result<Option<Weight>> {
        let Some(info) = self.find(name, &ne)? else { return Ok(None) };
        require_weight_type(info)?;
        let kernel = self.kernel(info.ty, il);
        let id = self.add(info, Usage::MulMat, il, kernel)?;
        Ok(Some(Weight { id, among: None, rows: self.rows(info), kernel, packed: None }))
    }

    /// The matrices `[n_in, n_out]` of `n_expert` experts in the tensor `NAME.weight`, which the file must have, and their biases in
    /// `NAME.bias`, which it may have: of layer `il`.
    pub fn stack(&mut self, name: &str, [n_in, n_out]: [usize; 2], n_expert: usize, il: usize) -> Result<Stack> {
        let [name, bias] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
        let info = self.find(&name, &[n_in, n_out, n_expert])?.ok_or_else(|| missing(&name))?;
        require_weight_type(info)?;
        let kernel = self.kernel(info.ty, il);
        let id = self.add(info, Usage::MulMatId, il, kernel)?;
        let start = self.gguf.position(info);
        let range = start..start + info.n_bytes as usize;
        let rows = Matrix::mapped(self.gguf.map(info).clone(), range, info.ty, n_in, n_out * n_expert);
        let bias = match self.find(&bias, &[n_out, n_expert])? {
            None => None,
            Some(info) => {
                require_f32(info)?;
                Some(self.add(info, Usage::AddId, il, Kernel::Ggml)?)
            }
        };
        Ok(Stack { id, rows, bias, n_expert, kernel })
    }

    /// Sinks of the `n_head` heads in the tensor `NAME.weight`, which the file must have: of layer `il`.
    pub fn sinks(&mut self, name: &str, n_head: usize, il: usize) -> Result<Vector> {
        let name = format!("{name}.weight");
        self.vector_if_any(&name, n_head, Usage::Sinks, il)?.ok_or_else(|| missing(&name))
    }

    /// The table of embeddings, which lies on the CPU.
    pub fn embeddings(&mut self, name: &str, ne: [usize; 2]) -> Result<TensorId> {
        let info = self.find(name, &ne)?.ok_or_else(|| missing(name))?;
        require_weight_type(info)?;
        self.add(info, Usage::GetRows, INPUT, Kernel::Ggml)
    }

    /// An RMS norm whose gain `NAME.weight` `[n]` the file must have.
    pub fn rms_norm(&mut self, name: &str, n: usize, eps: f32, il: usize) -> Result<Norm> {
        let name = format!("{name}.weight");
        let gain = self.vector_if_any(&name, n, Usage::Mul, il)?.ok_or_else(|| missing(&name))?;
        Ok(Norm::Rms { gain, eps })
    }

    /// A layer norm whose gain `NAME.weight` and bias `NAME.bias`, both `[n]`, the file must have.
    pub fn layer_norm(&mut self, name: &str, n: usize, eps: f32, il: usize) -> Result<Norm> {
        let mut vector = |part: &str, usage| {
            let name = format!("{name}.{part}");
            self.vector_if_any(&name, n, usage, il)?.ok_or_else(|| missing(&name))
        };
        Ok(Norm::Layer { gain: vector("weight", Usage::Mul)?, bias: vector("bias", Usage::Add)?, eps })
    }

    /// The tensor `NAME.weight`, which the file may have, is of no use: it is not loaded, and no reason to refuse the file.
    pub fn leave(&mut self, name: &str) {
        if let Some(info) = self.gguf.tensor(&format!("{name}.weight")) {
            self.used.insert(&info.name);
        }
    }

    /// Whether the file has a matrix `NAME.weight`.
    pub fn has(&self, name: &str) -> bool {
        self.gguf.tensor(&format!("{name}.weight")).is_some()
    }

    /// Divisors `[n]` of the frequencies of RoPE, if the file has them.
    pub fn rope_freqs(&mut self, n: usize) -> Result<Factors> {
        Ok(self.rope_factors("rope_freqs.weight", n)?.map_or(Factors::None, Factors::Same))
    }

    /// Divisors `[n]` of the frequencies of RoPE, if the file has such a tensor. [`Kind::Malformed`] if one is not positive.
    pub fn rope_factors(&mut self, name: &str, n: usize) -> Result<Option<Vector>> {
        let Some(factors) = self.vector_if_any(name, n, Usage::Rope, INPUT)? else { return Ok(None) };
        if let Some((i, f)) = factors.values().iter().enumerate().find(|(_, f)| !(f.is_finite() && **f > 0.0)) {
            return Err(Error::malformed(format!(
                "tensor '{name}' has the factor {f} at {i}, expected a positive number"
            )));
        }
        Ok(Some(factors))
    }

    /// A factor: `NAME.weight` of one number, if the file has it, of layer `il`.
    pub fn factor_if_any(&mut self, name: &str, il: usize) -> Result<Option<Vector>> {
        self.vector_if_any(&format!("{name}.weight"), 1, Usage::Mul, il)
    }

    fn vector_if_any(&mut self, name: &str, n: usize, usage: Usage, il: usize) -> Result<Option<Vector>> {
        let Some(info) = self.find(name, &[n])? else { return Ok(None) };
        require_f32(info)?;
        let id = self.add(info, usage, il, Kernel::Ggml)?;
        Ok(Some(Vector { id, rows: self.rows(info) }))
    }

    /// The file's tensor of this name, if there is one, whose shape must be `ne` (missing dimensions are 1).
    fn find(&self, name: &str, ne: &[usize]) -> Result<Option<&'a TensorInfo>> {
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
        Ok(Some(info))
    }

    fn kernel(&self, ty: Type, il: usize) -> Kernel {
        let Options { kernels, no_mmap, .. } = *self.options;
        if self.placement.device(il) != Device::cpu() {
            return Kernel::Stock;
        }
        // Our kernels read the file: a copy of the weights in memory is for ggml's, unless ours are asked for.
        let kernels = if no_mmap && kernels == Kernels::Auto { Kernels::Ggml } else { kernels };
        Kernel::choose(kernels, ty, il >= self.n_layer)
    }

    fn add(&mut self, info: &'a TensorInfo, usage: Usage, il: usize, kernel: Kernel) -> Result<TensorId> {
        let ne = [info.ne[0], info.ne[1], info.ne[2]];
        let found = self.placement.memory(info.ty, ne, usage, il, kernel != Kernel::Ggml);
        let (device, memory) = found.ok_or_else(|| {
            Error::unsupported(format!(
                "tensor '{}' has type {}, with which no device can compute",
                info.name,
                info.ty.name()
            ))
        })?;
        let position = self.gguf.position(info);
        let in_place = !self.options.no_mmap
            && memory == device.buffer_type()
            && device.computes_in_place()
            && position.is_multiple_of(MAPPED_ALIGNMENT);
        let place = if in_place { Place::Mapped(device, info.part, position) } else { Place::Buffer(memory) };
        if !in_place {
            self.needs.add(if memory.in_program_memory() { Device::cpu() } else { device }, info.n_bytes);
        }
        let id = self.specs.push(TensorSpec { name: info.name.clone(), ty: info.ty, ne: info.ne, place });
        self.used.insert(&info.name);
        self.sources.push((id, info));
        Ok(id)
    }

    fn rows(&self, info: &TensorInfo) -> Matrix {
        let start = self.gguf.position(info);
        let range = start..start + info.n_bytes as usize;
        Matrix::mapped(self.gguf.map(info).clone(), range, info.ty, info.ne[0] as usize, info.ne[1] as usize)
    }

    /// Leaves the tensors without memory, for graphs that are only measured; and says what it would take of each device's memory.
    pub fn sketch(self) -> Result<(Loaded, Needs)> {
        let ignored = self.ignored()?;
        let mut store = Store::sketch(self.specs);
        store.set_weights();
        Ok((Loaded { store: Rc::new(store), ignored }, self.needs))
    }

    /// Brings the tensors into memory. `progress` is told the share done and may stop the load.
    pub fn finish(self, n_threads: usize, progress: &mut (dyn FnMut(f32) -> ControlFlow<()> + Send)) -> Result<Loaded> {
        let ignored = self.ignored()?;
        let Loader { gguf, specs, sources, needs, .. } = self;
        let (mut in_buffers, mut mapped) = (Vec::new(), HashSet::new());
        for (spec, &(id, info)) in specs.iter().zip(&sources) {
            match spec.place {
                Place::Buffer(_) => in_buffers.push((id, info)),
                Place::Mapped(..) => {
                    mapped.insert(info.name.as_str());
                }
            }
        }
        needs.require("the weights", "use a smaller model or a smaller quantisation")?;

        let mut store = Store::new(specs, gguf.maps()).map_err(|e| {
            Error::memory(format!(
                "{} of {} memory for the weights could not be had",
                memory::human(e.bytes as u64),
                e.buffer_type
            ))
        })?;
        store.set_weights();
        let data: Vec<(TensorId, &[u8])> = in_buffers.iter().map(|&(id, info)| (id, gguf.data(info))).collect();
        let total: usize = data.iter().map(|d| d.1.len()).sum();
        let interrupted = || Error::new(Kind::Interrupted, "interrupted while loading the model");
        if !store.fill(&data, n_threads, &mut |bytes| progress(bytes as f32 / total as f32)) {
            return Err(interrupted());
        }
        // What was copied is not read from the file again, unless another tensor is used in place.
        for (_, info) in in_buffers.into_iter().filter(|(_, info)| !mapped.contains(info.name.as_str())) {
            let start = gguf.position(info);
            gguf.map(info).release(start..start + info.n_bytes as usize);
        }
        if progress(1.0).is_break() {
            return Err(interrupted());
        }
        Ok(Loaded { store: Rc::new(store), ignored })
    }

    /// Tensors of the file that nobody asked for. [`Kind::Unsupported`] if one of them is the model's.
    fn ignored(&self) -> Result<Vec<String>> {
        let unknown = self.gguf.tensors().iter().filter(|t| !self.used.contains(t.name.as_str()));
        let (model, ignored): (Vec<_>, Vec<_>) = unknown.map(|t| t.name.clone()).partition(|n| is_of_model(n));
        match model.first() {
            None => Ok(ignored),
            Some(name) => Err(Error::unsupported(format!(
                "this file has a tensor '{name}' that pp-run does not know for architecture '{}': without it the answers would \
                 be wrong",
                self.gguf.metadata().architecture()
            ))),
        }
    }
}

fn missing(name: &str) -> Error {
    Error::malformed(format!("tensor '{name}' is missing; the file's architecture needs it: download it again"))
}

fn require_weight_type(info: &TensorInfo) -> Result<()> {
    match ggml::can_dequantize(info.ty) {
        true => Ok(()),
        false => Err(Error::unsupported(format!(
            "tensor '{}' has type {}, expected a type of weights",
            info.name,
            info.ty.name()
        ))),
    }
}

/// ggml's kernels read gains, biases, sinks and frequency factors as F32.
fn require_f32(info: &TensorInfo) -> Result<()> {
    match info.ty {
        Type::F32 => Ok(()),
        ty => Err(Error::unsupported(format!("tensor '{}' has type {}, expected F32", info.name, ty.name()))),
    }
}

/// Whether a tensor that the architecture does not have would change what a model computes: a name of a layer's, or of what comes
/// before or after the layers. Others (of a projector, of a tool) are left alone.
fn is_of_model(name: &str) -> bool {
    ["blk.", "output", "token_", "position_", "per_layer_", "rope_"].iter().any(|p| name.starts_with(p))
}
