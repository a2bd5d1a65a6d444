//! Where weights lie: which device computes a layer, and which of its kinds of memory suits a tensor.

use ggml::{BufferType, Device, Type, Usage};

use super::options::GpuOptions;
use crate::error::{Error, Result, escape};
use crate::system::memory::human;

/// Which device computes each layer.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The GPU of each layer, and of the output, which comes after them; `None` for the CPU
    layers: Vec<Option<Device>>,
}

/// The layer number of what comes before the layers: always on the CPU, as in llama.cpp.
pub const INPUT: usize = usize::MAX;

impl Placement {
    /// Puts layers, counted from the last, on the GPUs that are asked for: on one after the other, each in proportion to its free memory or to
    /// the shares that are given. [`crate::error::Kind::Usage`] for a device that is not there.
    pub fn new(n_layer: usize, options: &GpuOptions) -> Result<Placement> {
        let gpus = chosen(options)?;
        let room = |gpu: &Device| gpu.memory().0 as f64;
        let shares: Vec<f64> = match options.split.is_empty() {
            true => gpus.iter().map(room).collect(),
            false => (0..gpus.len()).map(|i| options.split.get(i).copied().unwrap_or(0.0)).collect(),
        };
        let n = options.n_layers.map_or(usize::MAX, |n| n as usize);
        Ok(Placement { layers: place(n_layer, n.min(n_layer + 1), &gpus, &shares) })
    }

    /// The GPUs in use.
    pub fn gpus(&self) -> Vec<Device> {
        let mut gpus: Vec<Device> = Vec::new();
        for gpu in self.layers.iter().flatten() {
            if !gpus.contains(gpu) {
                gpus.push(*gpu);
            }
        }
        gpus
    }

    /// The device of a layer.
    pub fn device(&self, il: usize) -> Device {
        self.layers.get(il).copied().flatten().unwrap_or_else(Device::cpu)
    }

    /// The best memory for a tensor `[ne0, ne1, ne2]` of layer `il`, in llama.cpp's order: the device's own, then the layouts that ggml's
    /// CPU kernels prefer, unless the tensor `is_read` by others, too, then plain memory. `None` if nothing can compute with it.
    pub fn memory(
        &self,
        ty: Type,
        ne: [u64; 3],
        usage: Usage,
        il: usize,
        is_read: bool,
    ) -> Option<(Device, BufferType)> {
        let (cpu, device) = (Device::cpu(), self.device(il));
        let mut candidates: Vec<(Device, BufferType)> = Vec::new();
        if device != cpu {
            candidates.push((device, device.buffer_type()));
        }
        if !is_read {
            candidates.extend(cpu.extra_buffer_types().into_iter().map(|b| (cpu, b)));
        }
        candidates.push((cpu, cpu.buffer_type()));
        candidates.into_iter().find(|&(device, memory)| device.supports(memory, ty, ne, usage))
    }
}

/// The GPUs that options name, or all.
fn chosen(options: &GpuOptions) -> Result<Vec<Device>> {
    let all = Device::gpus();
    let of_name = |name: &String| {
        let found = all.iter().find(|d| d.name().eq_ignore_ascii_case(name)).copied();
        found.ok_or_else(|| {
            let there: Vec<String> = all.iter().map(|d| d.name()).collect();
            let there = if there.is_empty() { "no GPU is there".to_owned() } else { there.join(", ") };
            Error::usage(format!("--device: '{}' is not there ({there}): see --list-devices", escape(name)))
        })
    };
    let gpus: Vec<Device> = match &options.devices {
        None => all.clone(),
        Some(names) => names.iter().map(of_name).collect::<Result<_>>()?,
    };
    match options.only {
        None => Ok(gpus),
        // As llama.cpp's: without a GPU the number means nothing.
        Some(_) if gpus.is_empty() => Ok(gpus),
        Some(i) => gpus.get(i).map(|&gpu| vec![gpu]).ok_or_else(|| {
            Error::usage(format!("--main-gpu: {i} is not the number of a GPU; there are {} (from 0)", gpus.len()))
        }),
    }
}

/// The GPU of each of `n_layer` layers and of the output, if the last `n` go to `gpus` in these shares.
fn place(n_layer: usize, n: usize, gpus: &[Device], shares: &[f64]) -> Vec<Option<Device>> {
    let all: f64 = shares.iter().sum();
    let first = n_layer + 1 - n;
    let of_layer = |il: usize| {
        // The part of these layers that comes before this one, as llama.cpp counts it.
        let before = il.checked_sub(first)? as f64 / n as f64 * all;
        let mut end = 0.0;
        let upper = shares.iter().position(|share| {
            end += share;
            before < end
        });
        gpus.get(upper?).copied()
    };
    (0..=n_layer).map(of_layer).collect()
}

/// A line for each GPU that can be named with `--device`, as llama.cpp has it.
pub fn device_lines() -> Vec<String> {
    let line = |d: Device| {
        let (free, total) = d.memory();
        format!("{}: {} ({}, {} free)", d.name(), escape(&d.description()), human(total as u64), human(free as u64))
    };
    Device::gpus().into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shared_out() {
        // Any devices do: only their order counts.
        let cpu = Device::cpu();
        let count = |n, shares: &[f64]| {
            let gpus = vec![cpu; shares.len()];
            place(4, n, &gpus, shares).iter().map(Option::is_some).collect::<Vec<_>>()
        };
        assert_eq!(count(0, &[1.0]), [false; 5]);
        assert_eq!(count(2, &[1.0]), [false, false, false, true, true]);
        assert_eq!(count(5, &[1.0, 3.0]), [true; 5]);
        assert_eq!(count(5, &[]), [false; 5]);
        assert_eq!(count(5, &[0.0, 1.0]), [true; 5]);
        assert_eq!(count(5, &[0.0, 0.0]), [false; 5]);
    }
}
