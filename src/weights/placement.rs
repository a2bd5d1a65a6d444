//! Where weights lie: which device computes a layer, and which of its kinds of memory suits a tensor.

use ggml::{BufferType, Device, Type, Usage};

use crate::gguf::Gguf;

/// Which device computes each layer.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The GPU in use, if any.
    pub gpu: Option<Device>,
    /// First layer on the GPU; layer `n_layer` is the output.
    first_gpu_layer: usize,
}

/// The layer number of what comes before the layers: always on the CPU, as in llama.cpp.
pub const INPUT: usize = usize::MAX;

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
                        room = room.saturating_sub(layer_bytes(gguf, il, n_layer));
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
            Some(gpu) if il >= self.first_gpu_layer && il != INPUT => gpu,
            _ => Device::cpu(),
        }
    }

    /// The best memory for a tensor `[ne0, ne1, ne2]` of layer `il`, in llama.cpp's order: the device's own, then the layouts that ggml's
    /// CPU kernels prefer, unless our own kernels (`is_own`) are to read it, then plain memory. `None` if nothing can compute with it.
    pub fn memory(
        &self,
        ty: Type,
        ne: [u64; 3],
        usage: Usage,
        il: usize,
        is_own: bool,
    ) -> Option<(Device, BufferType)> {
        let (cpu, device) = (Device::cpu(), self.device(il));
        let mut candidates: Vec<(Device, BufferType)> = Vec::new();
        if device != cpu {
            candidates.push((device, device.buffer_type()));
        }
        if !is_own {
            candidates.extend(cpu.extra_buffer_types().into_iter().map(|b| (cpu, b)));
        }
        candidates.push((cpu, cpu.buffer_type()));
        candidates.into_iter().find(|&(device, memory)| device.supports(memory, ty, ne, usage))
    }
}

fn layer_bytes(gguf: &Gguf, il: usize, n_layer: usize) -> u64 {
    let prefix = if il < n_layer { format!("blk.{il}.") } else { "output".to_owned() };
    gguf.tensors().iter().filter(|t| t.name.starts_with(&prefix)).map(|t| t.n_bytes).sum()
}
