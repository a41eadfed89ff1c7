//! Merged graphs through ONNX Runtime against the pipeline's own steps.

use ndarray::Array2;

use super::preprocess::{RESIZED, TENSOR};
use super::*;
use crate::extract::{cut_segments, stored};
use crate::head::{Head, Standardization, Weights};
use crate::image::{ChannelOrder, ImageSpec, Layout, PixelFormat, PixelTable, Resize, Resizer, RgbImage, Views, Window, mirror};
use crate::onnx::{self, Layers, Model, networks};
use crate::runtime::{Answer, Compute, Graph, Images, Runtime, SessionOptions};
use crate::store::{Dtype, KeyParts, Segment, Transform};

fn runtime() -> Option<Runtime> {
    crate::runtime::tests::runtime()
}

const ON_CPU: SessionOptions = SessionOptions { compute: Compute::CPU, threads: 1 };

/// A picture without any symmetry.
fn drawing(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| [(x * x * 3 + y * 5) as u8, (x * 7 + y * y) as u8, (x * y + 90) as u8].into())
}

fn spec(side: u32, resize: Resize, pixels: PixelFormat, views: &str) -> ImageSpec {
    let views = Views::new(views.split(',').map(|view| view.parse().unwrap()).collect()).unwrap();
    ImageSpec { side, resize, pixels, views }
}

/// A network without its top, and its segments.
fn cut(network: &Model, layers: &Layers) -> (Model, Vec<Segment>) {
    let place = onnx::find_cut(network, None).unwrap();
    let segments = onnx::segments(network, &place, layers).unwrap();
    let cut = onnx::cut_segments(network, &segments).unwrap();
    (cut, stored(segments))
}

fn head(features: usize, standardized: bool, transform: Transform) -> Head {
    let kernel = Array2::from_shape_fn((features, 3), |(row, column)| ((row * 7 + column * 5) % 11) as f32 / 11.0 - 0.4);
    let weights = Weights { kernel, bias: ndarray::array![0.1, -0.2, 0.05] };
    let standardization = Standardization {
        mean: (0..features).map(|at| at as f32 / 10.0).collect(),
        std: (0..features).map(|at| 0.5 + (at % 3) as f32).collect(),
    };
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    Head::new(weights, standardized.then_some(standardization), classes).unwrap().with_store(&key(), transform)
}

fn key() -> KeyParts {
    super::metadata::tests::metadata().store_key.parts
}

/// The pipeline's own view of an image, as bytes.
fn seen(image: &RgbImage, spec: &ImageSpec) -> Vec<RgbImage> {
    let mut resizer = Resizer::new();
    let views = spec.views.iter().map(|view| {
        let mut small = match view.window {
            Window::Whole => resizer.resize(image.clone(), spec.side, spec.resize).unwrap(),
            part => resizer.part(image, spec.side, spec.resize, part).unwrap(),
        };
        if view.mirrored {
            mirror(&mut small);
        }
        small
    });
    views.collect()
}

fn run(graph: &Graph, images: &[RgbImage], outputs: &[&str]) -> Vec<Answer> {
    let (width, height) = images[0].dimensions();
    let bytes: Vec<u8> = images.iter().flat_map(|image| image.as_raw().iter().copied()).collect();
    graph.run(Images::Uint8(&bytes), [images.len(), height as usize, width as usize, 3], outputs).unwrap()
}

fn inner(model: Model, runtime: &Runtime) -> Graph {
    runtime.graph(&model.with_outputs(&[RESIZED, TENSOR]).to_bytes(), &ON_CPU).unwrap()
}

#[test]
fn images_are_resized_to_the_same_bytes_in_every_way_and_view() {
    let Some(runtime) = runtime() else { return };
    let (backbone, segments) = cut(&networks::resnet(13), &Layers::Pooled);
    let views = "identity,hflip,center,top-left,bottom-right-hflip";
    for resize in [Resize::Squash, Resize::Crop, Resize::Pad] {
        let spec = spec(32, resize, PixelFormat::IMAGENET, views);
        let head = head(segments.last().map_or(0, |last| last.offset + last.width), false, Transform::None);
        let parts = Parts { backbone: &backbone, segments: &segments, head: &head, spec: &spec, dtype: Dtype::Float32 };
        let (model, _) = merge(&parts, &MergeOptions::default()).unwrap();
        let graph = inner(model, &runtime);
        for (width, height) in [(32, 32), (24, 24), (50, 37), (37, 50), (40, 13), (31, 33), (100, 64), (1, 1), (1, 40), (45, 1)] {
            let images = [drawing(width, height), drawing(width + 1, height).clone()];
            let images = [images[0].clone(), ::image::imageops::crop_imm(&images[1], 1, 0, width, height).to_image()];
            let [Answer::Float32(shape, found)] = &run(&graph, &images, &[RESIZED])[..] else { panic!() };
            assert_eq!(shape, &[spec.views.len() * 2, 3, 32, 32]);
            // View by view, and within it image by image; channels first.
            let each: Vec<Vec<RgbImage>> = images.iter().map(|image| seen(image, &spec)).collect();
            let expected = (0..spec.views.len()).flat_map(|view| each.iter().map(move |views| &views[view]));
            for (at, (found, expected)) in found.chunks(3 * 32 * 32).zip(expected).enumerate() {
                let plane = |channel: usize| expected.pixels().map(move |pixel| f32::from(pixel.0[channel]));
                let expected: Vec<f32> = (0..3).flat_map(plane).collect();
                let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
                assert_eq!(differ, 0, "{resize}, {width} x {height}, {at}: {differ} of {} bytes differ", expected.len());
            }
        }
    }
}

#[test]
fn large_images_differ_by_a_byte_in_thousands_at_most() {
    let Some(runtime) = runtime() else { return };
    let (backbone, segments) = cut(&networks::resnet(13), &Layers::Pooled);
    let spec = spec(32, Resize::Squash, PixelFormat::IMAGENET, "identity");
    let head = head(segments.last().map_or(0, |last| last.offset + last.width), false, Transform::None);
    let (model, _) = merge(
        &Parts { backbone: &backbone, segments: &segments, head: &head, spec: &spec, dtype: Dtype::Float32 },
        &MergeOptions::default(),
    )
    .unwrap();
    let image = drawing(1500, 1100);
    let [Answer::Float32(_, found)] = &run(&inner(model, &runtime), std::slice::from_ref(&image), &[RESIZED])[..] else {
        panic!()
    };
    let small = &seen(&image, &spec)[0];
    let expected = (0..3).flat_map(|channel| small.pixels().map(move |pixel| f32::from(pixel.0[channel])));
    let differences: Vec<f32> = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).filter(|off| *off > 0.0).collect();
    assert!(differences.len() <= 3 && differences.iter().all(|&off| off <= 1.0), "{differences:?}");
}

/// Probabilities of images by the steps of the pipeline.
fn by_steps(
    runtime: &Runtime,
    backbone: &Model,
    head: &Head,
    spec: &ImageSpec,
    dtype: Dtype,
    images: &[RgbImage],
) -> Array2<f32> {
    type Half = <arrow::datatypes::Float16Type as arrow::datatypes::ArrowPrimitiveType>::Native;
    let stored = |value: f32| if dtype == Dtype::Float16 { Half::from_f32(value).to_f32() } else { value };
    let session = runtime.session(&backbone.to_bytes(), &ON_CPU).unwrap();
    let table = PixelTable::new(&spec.pixels);
    let mut features = Vec::new();
    for image in images {
        let views: Vec<Vec<f32>> = seen(image, spec)
            .iter()
            .map(|small| {
                let mut tensor = vec![0.0; spec.values()];
                table.write(small, &mut tensor).unwrap();
                session.run(&tensor, spec.shape(1)).unwrap()
            })
            .collect();
        let changed = |value: f32| if head.transform() == Transform::Sqrt { value.abs().sqrt().copysign(value) } else { value };
        let mean = |at: usize| views.iter().map(|view| changed(stored(view[at]))).sum::<f32>() / views.len() as f32;
        features.extend((0..views[0].len()).map(mean));
    }
    let width = features.len() / images.len();
    head.probabilities(Array2::from_shape_vec((images.len(), width), features).unwrap().view()).unwrap()
}

#[test]
fn every_variant_gives_the_probabilities_of_the_steps() {
    let Some(runtime) = runtime() else { return };
    let nchw = PixelFormat { order: ChannelOrder::Bgr, ..PixelFormat::IMAGENET };
    assert_eq!(nchw.layout, Layout::Nchw);
    let raw = PixelFormat { divisor: 1.0, mean: [0.0; 3], std: [1.0; 3], ..nchw.clone() };
    let cases = [
        (networks::resnet(7), Layers::Pooled, nchw.clone(), "identity", false, Transform::None),
        (networks::resnet(13), Layers::MultiAll, nchw.clone(), "identity,hflip", true, Transform::None),
        (networks::efficientnet(11, true), Layers::MultiAll, nchw.clone(), "identity,hflip,center", true, Transform::Sqrt),
        (
            networks::densenet(),
            Layers::Multi,
            PixelFormat { divisor: 1.0, mean: [0.0; 3], std: [1.0; 3], ..nchw.clone() },
            "identity,top-left-hflip",
            false,
            Transform::Sqrt,
        ),
        (networks::of_bytes(), Layers::Pooled, raw.clone(), "identity,hflip", true, Transform::None),
        (networks::of_half(), Layers::Pooled, PixelFormat::IMAGENET, "identity", true, Transform::None),
        (networks::vision_transformer(), Layers::Pooled, nchw, "identity", true, Transform::None),
        (networks::convnext(12), Layers::Pooled, PixelFormat::TENSORFLOW, "identity,hflip", true, Transform::None),
    ];
    for (at, (network, layers, pixels, views, standardized, transform)) in cases.into_iter().enumerate() {
        let dtype = if at % 2 == 1 { Dtype::Float16 } else { Dtype::Float32 };
        let (backbone, segments) = cut(&network, &layers);
        let width = segments.last().map_or(0, |last| last.offset + last.width);
        let (spec, head) = (spec(32, Resize::Crop, pixels, views), head(width, standardized, transform));
        let parts = Parts { backbone: &backbone, segments: &segments, head: &head, spec: &spec, dtype };
        let images = [drawing(50, 40), drawing(40, 50), drawing(32, 32)];
        let expected = by_steps(&runtime, &backbone, &head, &spec, dtype, &images);
        let check = |found: &[f32], index: &[i64], row: usize, what: &str| {
            let wanted = expected.row(row);
            let most = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(most < 2e-5, "network {at}, {what}, image {row}: {found:?} {wanted:?}");
            let best = (0..3).max_by(|&a, &b| wanted[a].total_cmp(&wanted[b])).unwrap();
            assert_eq!(index, [best as i64], "network {at}, {what}, image {row}");
        };
        let opsets = [None, Some(backbone.opset().max(13)), Some(18), Some(21)];
        for opset in opsets {
            let options = MergeOptions { opset, ..MergeOptions::default() };
            let (model, record) = merge(&parts, &options).unwrap();
            assert_eq!(record.shape, ["N", "H", "W", "3"]);
            assert_eq!(model.opset(), opset.unwrap_or(backbone.opset().max(13)));
            let bytes = model.to_bytes();
            let graph = runtime.graph(&bytes, &ON_CPU).unwrap();
            for (row, image) in images.iter().enumerate() {
                let mut answers = run(&graph, std::slice::from_ref(image), &[PROBABILITIES, CLASS_INDEX]);
                let (index, found) = (answers.pop().unwrap().integers().unwrap(), answers.pop().unwrap().floats().unwrap());
                check(&found, &index, row, &format!("uint8, operators {opset:?}"));
            }
        }
        let options = MergeOptions { input: InputKind::Tensor, ..MergeOptions::default() };
        let has_parts = !spec.views.parts().is_empty();
        match merge(&parts, &options) {
            Err(error) => assert!(has_parts && error.to_string().contains("--input uint8"), "{error}"),
            Ok((model, record)) => {
                assert!(!has_parts && record.kind == InputKind::Tensor && record.shape.contains(&"32".to_owned()));
                let graph = runtime.graph(&model.to_bytes(), &ON_CPU).unwrap();
                let table = PixelTable::new(&spec.pixels);
                let mut tensor = vec![0.0; 3 * spec.values()];
                for (image, out) in images.iter().zip(tensor.chunks_mut(spec.values())) {
                    let small = Resizer::new().resize(image.clone(), spec.side, spec.resize).unwrap();
                    table.write(&small, out).unwrap();
                }
                let mut answers = graph.run(Images::Float32(&tensor), spec.shape(3), &[PROBABILITIES, CLASS_INDEX]).unwrap();
                let (index, found) = (answers.pop().unwrap().integers().unwrap(), answers.pop().unwrap().floats().unwrap());
                for row in 0..3 {
                    check(&found[3 * row..3 * row + 3], &index[row..=row], row, "tensor");
                }
            }
        }
    }
}

#[test]
fn tensors_without_weight_are_left_out_and_the_answers_stay() {
    let Some(runtime) = runtime() else { return };
    let (whole, segments) = cut(&networks::resnet(13), &Layers::MultiAll);
    let width = segments.last().map_or(0, |last| last.offset + last.width);
    let full = head(width, true, Transform::None);
    // Only the first segment, and one feature of the second.
    let mut kernel = full.kernel().to_owned();
    kernel.rows_mut().into_iter().skip(segments[1].offset + 1).for_each(|mut row| row.fill(0.0));
    let weights = Weights { kernel, bias: full.bias().to_owned() };
    let budget = Head::new(weights, full.standardization().cloned(), full.classes().to_vec()).unwrap();
    assert_eq!(used(&full, &segments).unwrap(), None);
    let (kept, small) = used(&budget, &segments).unwrap().unwrap();
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[1].offset, kept[0].width);
    let part = cut_segments(&whole, &kept).unwrap();
    assert!(part.proto().graph.as_ref().unwrap().node.len() * 2 < whole.proto().graph.as_ref().unwrap().node.len());
    let spec = spec(32, Resize::Squash, PixelFormat::IMAGENET, "identity,hflip");
    let (model, _) = merge(
        &Parts { backbone: &part, segments: &kept, head: &small, spec: &spec, dtype: Dtype::Float32 },
        &MergeOptions::default(),
    )
    .unwrap();
    let graph = runtime.graph(&model.to_bytes(), &ON_CPU).unwrap();
    let image = drawing(50, 40);
    let expected = by_steps(&runtime, &whole, &budget, &spec, Dtype::Float32, std::slice::from_ref(&image));
    let found = run(&graph, &[image], &[PROBABILITIES]).pop().unwrap().floats().unwrap();
    let most = found.iter().zip(expected.row(0)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most < 1e-5, "{found:?} {expected:?}");
}

#[test]
fn weights_in_half_the_room_give_nearly_the_same_and_a_temperature_is_divided_by() {
    let Some(runtime) = runtime() else { return };
    let (backbone, segments) = cut(&networks::resnet(13), &Layers::Pooled);
    let width = segments.last().map_or(0, |last| last.offset + last.width);
    let (spec, head) = (spec(32, Resize::Squash, PixelFormat::IMAGENET, "identity"), head(width, true, Transform::None));
    let parts = Parts { backbone: &backbone, segments: &segments, head: &head, spec: &spec, dtype: Dtype::Float32 };
    let image = drawing(32, 32);
    let answer = |model: &Model| {
        let graph = runtime.graph(&model.to_bytes(), &ON_CPU).unwrap();
        run(&graph, std::slice::from_ref(&image), &[PROBABILITIES]).pop().unwrap().floats().unwrap()
    };
    let (model, _) = merge(&parts, &MergeOptions::default()).unwrap();
    let whole = answer(&model);
    let half = onnx::with_half_weights(&model).unwrap();
    assert!(half.to_bytes().len() < model.to_bytes().len());
    let found = answer(&half);
    let most = found.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most > 0.0 && most < 1e-2, "{found:?} {whole:?}");
    let (cooler, _) = merge(&parts, &MergeOptions { temperature: Some(2.0), ..MergeOptions::default() }).unwrap();
    let logits = |probabilities: &[f32]| (probabilities[0] / probabilities[1]).ln();
    assert!((logits(&answer(&cooler)) * 2.0 - logits(&whole)).abs() < 1e-4);
}

#[test]
fn what_cannot_be_put_together_is_refused_with_the_reason() {
    let (backbone, segments) = cut(&networks::resnet(13), &Layers::Pooled);
    let width = segments.last().map_or(0, |last| last.offset + last.width);
    let plain = spec(32, Resize::Squash, PixelFormat::IMAGENET, "identity");
    let refused = |head: &Head, opset: Option<i64>| {
        let parts = Parts { backbone: &backbone, segments: &segments, head, spec: &plain, dtype: Dtype::Float32 };
        merge(&parts, &MergeOptions { opset, ..MergeOptions::default() }).unwrap_err().to_string()
    };
    let good = head(width, false, Transform::None);
    let said = refused(&head(width + 1, false, Transform::None), None);
    assert!(said.contains(&format!("of {} features", width + 1)) && said.contains("fit it again"), "{said}");
    let (later, segments) = cut(&networks::resnet(17), &Layers::Pooled);
    let parts = Parts { backbone: &later, segments: &segments, head: &good, spec: &plain, dtype: Dtype::Float32 };
    let said = merge(&parts, &MergeOptions { opset: Some(13), ..MergeOptions::default() }).unwrap_err().to_string();
    assert!(said.contains("it needs version 17 at least") && said.contains("--opset"), "{said}");
    for (opset, needle) in [(11, "13 at least"), (99, "only versions")] {
        let said = refused(&good, Some(opset));
        assert!(said.contains(needle) && said.contains(&opset.to_string()), "{said}");
    }
}

fn about(parts: &Parts<'_>, input: InputRecord) -> Metadata {
    let metadata = super::metadata::tests::metadata();
    Metadata { classes: parts.head.classes().to_vec(), preprocessing: parts.spec.clone(), input, ..metadata }
}

#[test]
fn a_model_that_leaves_the_steps_is_found_out_with_the_stage() {
    let Some(runtime) = runtime() else { return };
    let (backbone, segments) = cut(&networks::resnet(13), &Layers::Pooled);
    let width = segments.last().map_or(0, |last| last.offset + last.width);
    let (good, own) = (spec(32, Resize::Squash, PixelFormat::IMAGENET, "identity"), head(width, true, Transform::None));
    let other_head = head(width, false, Transform::None);
    let mut bytes = std::io::Cursor::new(Vec::new());
    drawing(50, 40).write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
    let images = [bytes::Bytes::from(bytes.into_inner())];
    let right = Parts { backbone: &backbone, segments: &segments, head: &own, spec: &good, dtype: Dtype::Float32 };
    let wrong_size = ImageSpec { resize: Resize::Crop, ..good.clone() };
    let wrong_range = ImageSpec { pixels: PixelFormat { divisor: 250.0, ..PixelFormat::IMAGENET }, ..good.clone() };
    let plain = PixelFormat { mean: [0.0; 3], std: [1.0; 3], ..PixelFormat::IMAGENET };
    let (rgb, bgr) = (
        ImageSpec { pixels: plain.clone(), ..good.clone() },
        ImageSpec { pixels: PixelFormat { order: ChannelOrder::Bgr, ..plain }, ..good.clone() },
    );
    let made_of = |spec: &ImageSpec, head: &Head| {
        let parts = Parts { spec, head, ..right };
        let (model, input) = merge(&parts, &MergeOptions::default()).unwrap();
        (model, about(&parts, input))
    };
    let found = |(model, metadata): (Model, Metadata), parts: &Parts<'_>| {
        stage(&runtime, (&model, &metadata), parts, &images).unwrap().map(|stage| stage.to_string()).unwrap_or_default()
    };
    assert_eq!(found(made_of(&good, &own), &right), "");
    for (made, parts, name) in [
        (made_of(&wrong_size, &own), right, "resize"),
        (made_of(&wrong_range, &own), right, "range"),
        (made_of(&bgr, &own), Parts { spec: &rgb, ..right }, "layout"),
        (made_of(&good, &other_head), right, "head"),
    ] {
        let said = found(made, &parts);
        assert!(said.starts_with(name), "{name}: {said}");
    }
    // The same by the answers alone.
    let (model, metadata) = made_of(&good, &own);
    let deployed = Deployed::open(&runtime, &model, &metadata).unwrap();
    let said = deployed.answer(&[images[0].clone(), bytes::Bytes::from_static(b"no image"), images[0].clone()]).unwrap();
    assert_eq!(said[0], said[2]);
    assert!(said[1].as_ref().unwrap_err().contains("not an image"));
    let expected = by_steps(&runtime, &backbone, &own, &good, Dtype::Float32, &[drawing(50, 40)]);
    let near = said[0].as_ref().unwrap().probabilities.iter().zip(expected.row(0)).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(near);
}

#[test]
fn convolutions_in_integers_are_near_those_of_floats() {
    let Some(runtime) = runtime() else { return };
    let encoded = |image: &RgbImage| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
        bytes::Bytes::from(bytes.into_inner())
    };
    let images: Vec<bytes::Bytes> = (20..33).map(|width| encoded(&drawing(width * 2, width + 7))).collect();
    for network in [networks::resnet(7), networks::resnet(13), networks::convnext(12)] {
        let (backbone, segments) = cut(&network, &Layers::MultiAll);
        let width = segments.last().map_or(0, |last| last.offset + last.width);
        let nhwc = onnx::input(&backbone).unwrap().layout == onnx::Layout::Nhwc;
        let pixels = if nhwc { PixelFormat::TENSORFLOW } else { PixelFormat::IMAGENET };
        let (spec, head) = (spec(32, Resize::Squash, pixels, "identity,hflip"), head(width, true, Transform::None));
        let integers = in_integers(&runtime, &backbone, &spec, &images).unwrap();
        let count = |op: &str| {
            let nodes = &integers.proto().graph.as_ref().unwrap().node;
            nodes.iter().filter(|node| node.op_type() == op).count()
        };
        assert!(count("QuantizeLinear") >= count("Conv") && count("Conv") > 0);
        let floats = Parts { backbone: &backbone, segments: &segments, head: &head, spec: &spec, dtype: Dtype::Float32 };
        let answer = |parts: &Parts<'_>| {
            let (model, _) = merge(parts, &MergeOptions::default()).unwrap();
            let graph = runtime.graph(&model.to_bytes(), &ON_CPU).unwrap();
            run(&graph, &[drawing(50, 33)], &[PROBABILITIES]).pop().unwrap().floats().unwrap()
        };
        let (found, wanted) = (answer(&Parts { backbone: &integers, ..floats }), answer(&floats));
        let most = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most > 0.0 && most < 0.1, "{found:?} {wanted:?}");
        assert!(in_integers(&runtime, &backbone, &spec, &[bytes::Bytes::from_static(b"x")]).is_err());
    }
}
