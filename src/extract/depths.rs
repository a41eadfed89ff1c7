//! Every segment of a row is the average of the real map: networks of every family, run by ONNX Runtime.

use crate::onnx::networks::{convnext, densenet, efficientnet, inception, linear, resnet, vgg, vision_transformer, with_output};
use crate::onnx::{Layers, Layout, Model, cut_segments, find_cut, input, segments};
use crate::runtime::{Compute, SessionOptions, tests::runtime};

/// Pixels of three images, from -1 to 1.
fn pixels(side: usize) -> Vec<f32> {
    (0..3 * 3 * side * side).map(|index| ((index * 7919 + 13) % 2048) as f32 / 1024.0 - 1.0).collect()
}

/// The average over the positions of an image's map; tokens and maps may have their channels last.
fn average(map: &[f32], channels: usize, last: bool) -> Vec<f32> {
    let positions = map.len() / channels;
    let at =
        |channel: usize, position: usize| map[if last { position * channels + channel } else { channel * positions + position }];
    let mean = |channel| (0..positions).map(|position| f64::from(at(channel, position))).sum::<f64>() / positions as f64;
    (0..channels).map(|channel| mean(channel) as f32).collect()
}

fn check(name: &str, model: &Model, side: usize, channels_last: &[usize]) {
    let Some(runtime) = runtime() else { return };
    let place = find_cut(model, None).unwrap();
    let all = segments(model, &place, &Layers::MultiAll).unwrap();
    assert!(all.len() > 1, "{name}");
    let options = SessionOptions { compute: Compute::CPU, threads: 1 };
    let run = |model: &Model| {
        let shape = match input(model).unwrap().layout {
            Layout::Nchw => [3, 3, side, side],
            Layout::Nhwc => [3, side, side, 3],
        };
        runtime.session(&model.to_bytes(), &options).unwrap().run(&pixels(side), shape).unwrap()
    };
    let rows = run(&cut_segments(model, &all).unwrap());
    let width = rows.len() / 3;
    let last = all.last().unwrap();
    assert_eq!(width, last.offset + last.width, "{name}");
    // The last segment is what the cut alone gives, up to the rounding of what ONNX Runtime fuses otherwise.
    let pooled = run(&crate::onnx::cut(model, &place).unwrap());
    for (index, segment) in all.iter().enumerate() {
        let maps = run(&with_output(model, &segment.tensor));
        for image in 0..3 {
            let found = &rows[image * width..][segment.offset..segment.offset + segment.width];
            let close = |expected: &[f32], share: f32| {
                let scale = expected.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() <= share * scale, "{name}: {} {a} {b}", segment.tensor);
                }
            };
            if segment == last {
                close(&pooled[image * segment.width..][..segment.width], 1e-6);
            }
            let map = &maps[image * maps.len() / 3..(image + 1) * maps.len() / 3];
            close(&average(map, segment.width, channels_last.contains(&index)), 1e-5);
        }
    }
}

#[test]
fn segments_are_averages_of_the_maps() {
    check("resnet", &resnet(13), 32, &[]);
    check("efficientnet", &efficientnet(13, false), 32, &[]);
    check("mobilenet v3", &efficientnet(11, true), 32, &[]);
    check("densenet", &densenet(), 32, &[]);
    check("inception", &inception(), 32, &[]);
    check("vgg", &vgg(), 32, &[]);
    check("vision transformer", &vision_transformer(), 32, &[0, 1]);
    check("convnext", &convnext(17), 32, &[1]);
    check("convnext, axes as an input", &convnext(18), 32, &[1]);
    check("no activation", &linear(), 32, &[]);
}
