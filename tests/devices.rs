//! Devices are made ready once, whichever thread comes first. The only test of this program: nothing has used a device before.
//! Without a GPU there is only the CPU to start.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Barrier};
use std::thread;

use ggml::{Device, Executor};

#[test]
fn threads_use_devices_for_the_first_time_at_once() {
    let begin = Barrier::new(8);
    thread::scope(|scope| {
        for i in 0..8 {
            let begin = &begin;
            scope.spawn(move || {
                let gpus = Device::gpus();
                begin.wait();
                if i % 2 == 0 {
                    Executor::new(&gpus, Arc::new(AtomicBool::new(false))).expect("devices start");
                } else {
                    gpus.iter().for_each(|gpu| assert!(!gpu.buffer_type().name().is_empty()));
                }
            });
        }
    });
}
