//! `pp-run doctor`: what pp-run sees of this machine, what it makes of it, and what would make it faster.
//!
//! Nothing that is read here is needed for a run, so what cannot be read is left out.

use std::fs;
use std::path::{Path, PathBuf};

use ggml::Device;
use kernels::{Feature, Isa};

use super::output::print;
use crate::error::{Result, escape};
use crate::system::cpus::Cpus;
use crate::system::{memory, places};
use crate::weights::{by_kernel, quantised_types};

/// Prints the report.
pub fn run() -> Result<()> {
    let root = Path::new("/");
    let cpus = Cpus::find();
    let features = kernels::features();
    let devices = Device::all();
    let mut out = String::new();
    let mut line = |name: &str, text: &str| out.push_str(&format!("{name:<12} {}\n", escape(text)));
    line("version", env!("CARGO_PKG_VERSION"));
    line("processor", &processor(root));
    line("", &list("with", &features, |f| f.detected));
    line("kernels", &kernels_in_use());
    for types in by_kernel(&quantised_types()) {
        line("", &types);
    }
    line("threads", &threads(&cpus));
    line("memory", &memory_line());
    for device in &devices {
        line("device", &device_line(*device));
    }
    line("build", &(list("for any processor with", &features, |f| f.compiled) + native_or_not(&features)));
    line("", &gpu_features());
    line("config", &place(places::config(&places::env)));
    line("chats", &place(places::chats(&places::env)));
    line("prompts", &place(places::prompts(&places::env)));

    out.push_str("\nWhat would make it faster:\n");
    let seen = Seen { features: &features, cpus: &cpus, gpus: Device::gpus().len(), available: memory::available() };
    let mut advice = advice(root, &seen);
    if advice.is_empty() {
        advice.push("nothing that pp-run can see".to_owned());
    }
    advice.iter().for_each(|a| out.push_str(&format!("- {}\n", escape(a))));
    print(&out)
}

fn processor(root: &Path) -> String {
    let info = read(root, "proc/cpuinfo").unwrap_or_default();
    // On ARM /proc/cpuinfo has no such line.
    let name = info.lines().filter_map(|l| l.split_once(':')).find(|(key, _)| key.trim() == "model name");
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// The features that are `wanted`, of those that decide which kernels run.
fn list(prefix: &str, features: &[Feature], wanted: impl Fn(&Feature) -> bool) -> String {
    let names: Vec<&str> = features.iter().filter(|f| wanted(f)).map(|f| f.name).collect();
    let none = format!("nothing beyond {}", std::env::consts::ARCH);
    format!("{prefix} {}", if names.is_empty() { none } else { names.join(", ") })
}

fn native_or_not(features: &[Feature]) -> &'static str {
    if features.iter().all(|f| f.compiled || !f.detected) { " (native: all that this one has)" } else { "" }
}

fn device_line(device: Device) -> String {
    let (free, total) = device.memory();
    let of = match free < total {
        true => format!("{} of {} free", memory::human(free as u64), memory::human(total as u64)),
        // Of the CPU ggml says that all of its memory is free, whatever is in use.
        false => memory::human(total as u64),
    };
    format!("{}: {}, {of}", device.name(), device.description().trim())
}

fn kernels_in_use() -> String {
    let (used, best) = (Isa::best().to_string(), Isa::all().first().map(Isa::to_string).unwrap_or_default());
    if used == best { used } else { format!("{used} (the processor could do {best}, which this build does not allow)") }
}

/// How many, and why.
fn threads(cpus: &Cpus) -> String {
    let cores = format!("{} physical core{}", cpus.performance, if cpus.performance == 1 { "" } else { "s" });
    let mut text = match cpus.threads < cpus.performance {
        true => format!("{}, fewer than the {cores}", cpus.threads),
        false => format!("{}: one for each of {cores}", cpus.threads),
    };
    text.push_str(&format!(" ({} logical)", cpus.allowed));
    if cpus.performance < cpus.physical {
        text.push_str(&format!("; performance cores only, {} of {}", cpus.performance, cpus.physical));
    }
    if let Some(quota) = cpus.quota {
        text.push_str(&format!("; the control group's quota is {quota}"));
    }
    text
}

fn memory_line() -> String {
    let human = |n: Option<u64>| n.map(memory::human);
    let parts = [
        human(memory::total()).map(|n| format!("{n} in all")),
        human(memory::available()).map(|n| format!("{n} available")),
        human(memory::limit()).map(|n| format!("the control group's limit is {n}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "unknown".to_owned() } else { parts.join(", ") }
}

/// The cargo features of the build.
fn gpu_features() -> String {
    let all =
        [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal")), ("vulkan", cfg!(feature = "vulkan"))];
    let built: Vec<&str> = all.iter().filter(|f| f.1).map(|f| f.0).collect();
    match built.is_empty() {
        true => "without GPU support (cargo features cuda, metal, vulkan)".to_owned(),
        false => format!("with GPU support: {}", built.join(", ")),
    }
}

fn place(path: Option<PathBuf>) -> String {
    let Some(path) = path else { return "nowhere: HOME is not set".to_owned() };
    let not_there = if path.exists() { "" } else { " (not there)" };
    format!("{}{not_there}", path.display())
}

/// What advice depends on, besides files.
struct Seen<'a> {
    features: &'a [Feature],
    cpus: &'a Cpus,
    /// GPUs that ggml can use
    gpus: usize,
    /// Bytes of memory
    available: Option<u64>,
}

/// What would make it faster here, one line each.
fn advice(root: &Path, seen: &Seen) -> Vec<String> {
    let advice = [
        native(seen.features),
        dot_products(seen.features),
        (seen.gpus == 0).then(|| gpu(root)).flatten(),
        governor(root),
        battery(root),
        seen.available.and_then(free_memory),
        load(root, seen.cpus),
    ];
    advice.into_iter().flatten().collect()
}

fn native(features: &[Feature]) -> Option<String> {
    let unused: Vec<&str> = features.iter().filter(|f| f.detected && !f.compiled).map(|f| f.name).collect();
    (!unused.is_empty()).then(|| {
        format!(
            "a build for this very processor: this one was made without {} (cargo build --release in pp-run's own directory, \
             whose .cargo/config.toml says target-cpu=native)",
            unused.join(", ")
        )
    })
}

fn dot_products(features: &[Feature]) -> Option<String> {
    let has = features.iter().any(|f| f.detected && ["avxvnni", "avx512vnni", "dotprod"].contains(&f.name));
    (!has).then(|| {
        "a newer processor: this one has no instruction for dot products of bytes (AVX-512 VNNI, AVX-VNNI, ARM's dotprod), so \
         the kernels take several"
            .to_owned()
    })
}

/// A GPU on the bus that this build does not use.
fn gpu(root: &Path) -> Option<String> {
    let devices = fs::read_dir(root.join("sys/bus/pci/devices")).ok()?;
    let vendor = |device: PathBuf| {
        let displays = read(&device, "class")?.starts_with("0x03");
        // Intel's GPUs on bus 0 are part of the processor, and no faster than its cores.
        let on_bus_0 = device.file_name()?.to_str()?.starts_with("0000:00:");
        match read(&device, "vendor")?.as_str() {
            "0x10de" if displays => Some(("NVIDIA", "cuda")),
            "0x1002" if displays => Some(("AMD", "vulkan")),
            "0x8086" if displays && !on_bus_0 => Some(("Intel", "vulkan")),
            _ => None,
        }
    };
    // Of several GPUs one from NVIDIA is named, as its name is last in the alphabet.
    let (vendor, feature) = devices.flatten().filter_map(|d| vendor(d.path())).max_by_key(|v| v.0)?;
    Some(match cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan")) {
        false => format!(
            "the GPU: there is one from {vendor}, but this build is without support for it (cargo build --release \
             --features {feature})"
        ),
        true => format!(
            "the GPU: there is one from {vendor}, but this build finds none that it can use: is its driver there?"
        ),
    })
}

fn governor(root: &Path) -> Option<String> {
    const GOVERNOR: &str = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    let driver = read(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver").unwrap_or_default();
    // With these two drivers the governor 'powersave' lets the frequency follow the load.
    let adapts = ["intel_pstate", "amd-pstate-epp"].contains(&driver.as_str());
    (!adapts && read(root, GOVERNOR)? == "powersave").then(|| {
        format!(
            "a higher frequency: the governor is 'powersave', which keeps it low (write 'performance' or 'schedutil' to \
             /{GOVERNOR}, and to those of the other processors)"
        )
    })
}

fn battery(root: &Path) -> Option<String> {
    let discharges = |supply: PathBuf| {
        // The battery of a mouse or a headset is not the machine's.
        let of_device = read(&supply, "scope").is_some_and(|s| s == "Device");
        !of_device && read(&supply, "status").is_some_and(|s| s == "Discharging")
    };
    let supplies = fs::read_dir(root.join("sys/class/power_supply")).ok()?;
    let found = supplies.flatten().any(|s| discharges(s.path()));
    found.then(|| "mains: the machine runs on its battery".to_owned())
}

fn free_memory(available: u64) -> Option<String> {
    /// A model of 7 billion weights of 4 bits.
    const LITTLE: u64 = 4 << 30;
    (available < LITTLE).then(|| {
        format!(
            "more free memory: only {} are available, and what does not fit is read from the disk again and again",
            memory::human(available)
        )
    })
}

/// Other processes, as of the last minute.
fn load(root: &Path, cpus: &Cpus) -> Option<String> {
    let load: f64 = read(root, "proc/loadavg")?.split_whitespace().next()?.parse().ok()?;
    // The load is that of all processors of the machine; the process may be allowed only some of them.
    let all = read(root, "proc/cpuinfo").unwrap_or_default().lines().filter(|l| l.starts_with("processor")).count();
    let all = all.max(cpus.allowed);
    let advice = format!(
        "idle processors: the load of the last minute is {load:.1}, with {all} processors (answers take fewer threads meanwhile)"
    );
    (load > all as f64 / 2.0).then_some(advice)
}

fn read(directory: &Path, name: &str) -> Option<String> {
    fs::read_to_string(directory.join(name)).ok().map(|t| t.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(physical: usize, performance: usize, quota: Option<usize>, threads: usize) -> Cpus {
        Cpus { allowed: 8, physical, performance, quota, threads }
    }

    #[test]
    fn threads_have_reasons() {
        assert_eq!(threads(&cpus(4, 4, None, 4)), "4: one for each of 4 physical cores (8 logical)");
        assert_eq!(
            threads(&cpus(6, 2, None, 2)),
            "2: one for each of 2 physical cores (8 logical); performance cores only, 2 of 6"
        );
        assert_eq!(
            threads(&cpus(8, 8, Some(2), 2)),
            "2, fewer than the 8 physical cores (8 logical); the control group's quota is 2"
        );
    }

    /// The first words of each advice on a machine with these files.
    fn advised(files: &[(&str, &str)], features: &[Feature], available: u64) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let seen = Seen { features, cpus: &cpus(8, 8, None, 8), gpus: 0, available: Some(available) };
        let first = |a: &String| a.split(':').next().unwrap().to_owned();
        advice(root.path(), &seen).iter().map(first).collect()
    }

    const GOOD: &[Feature] = &[Feature { name: "avx512vnni", detected: true, compiled: true }];

    #[test]
    fn only_what_applies_is_advised() {
        let quiet = [
            ("sys/bus/pci/devices/0000:00:02.0/class", "0x030000"),
            ("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086"),
            ("sys/bus/pci/devices/0000:01:00.0/class", "0x020000"),
            ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate"),
            ("sys/class/power_supply/mouse/scope", "Device"),
            ("sys/class/power_supply/mouse/status", "Discharging"),
            ("sys/class/power_supply/BAT0/status", "Charging"),
            ("proc/loadavg", "0.10 0.20 0.30 1/100 4242"),
        ];
        assert!(advised(&quiet, GOOD, 8 << 30).is_empty());
        assert!(advised(&[], GOOD, 8 << 30).is_empty());

        let slow = [
            ("sys/bus/pci/devices/0000:00:02.0/class", "0x030000"),
            ("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086"),
            ("sys/bus/pci/devices/0000:01:00.0/class", "0x030200"),
            ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
            ("sys/class/power_supply/BAT0/status", "Discharging"),
            ("proc/loadavg", "7.50 0.20 0.30 1/100 4242"),
        ];
        let old = [Feature { name: "avx2", detected: true, compiled: false }];
        assert_eq!(
            advised(&slow, &old, 1 << 30),
            [
                "a build for this very processor",
                "a newer processor",
                "the GPU",
                "a higher frequency",
                "mains",
                "more free memory",
                "idle processors"
            ]
        );
    }
}
