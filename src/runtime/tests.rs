//! Real sessions on small networks; skipped, with a line that says so, where there is no ONNX Runtime and no way to get it.

use std::sync::LazyLock;

use prost::Message as _;

use super::*;
use crate::events::ignore;
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto, tensor_proto, tensor_shape_proto, type_proto,
};

fn library() -> Option<Library> {
    // Once: a dozen tests at the same time must not install it a dozen times.
    static FOUND: LazyLock<Option<Library>> = LazyLock::new(find);
    FOUND.clone()
}

fn find() -> Option<Library> {
    let options = RuntimeOptions { library: None, cache: crate::assets::cache_folder(), offline: false, compute: Compute::CPU };
    locate(&options, &ignore).inspect_err(|error| println!("skipped: {error}")).ok()
}

/// ONNX Runtime, or nothing and a line that says so.
pub(crate) fn runtime() -> Option<Runtime> {
    Some(Runtime::start(&library()?).unwrap())
}

const ON_CPU: SessionOptions = SessionOptions { compute: Compute::CPU, threads: 1 };

fn node(op: &str, input: &str, output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        input: vec![input.into()],
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

fn tensor(name: &str, element: tensor_proto::DataType, dimensions: &[&str]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension};
    let dimension = |name: &&str| Dimension {
        value: Some(match name.parse() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam((*name).into()),
        }),
        denotation: None,
    };
    let shape = Some(TensorShapeProto { dim: dimensions.iter().map(dimension).collect() });
    let value = type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(element.into()), shape });
    let r#type = Some(TypeProto { value: Some(value), denotation: None });
    ValueInfoProto { name: Some(name.into()), r#type, ..ValueInfoProto::default() }
}

/// Mean of each of three channels, NCHW.
fn channel_means(element: tensor_proto::DataType) -> Vec<u8> {
    let to = AttributeProto {
        name: Some("to".into()),
        r#type: Some(attribute_proto::AttributeType::Int.into()),
        i: Some(tensor_proto::DataType::Float as i64),
        ..AttributeProto::default()
    };
    let graph = GraphProto {
        name: Some("means".into()),
        node: vec![
            node("Cast", "image", "float", vec![to]),
            node("GlobalAveragePool", "float", "pooled", vec![]),
            node("Flatten", "pooled", "embedding", vec![]),
        ],
        input: vec![tensor("image", element, &["N", "3", "H", "W"])],
        output: vec![tensor("embedding", tensor_proto::DataType::Float, &["N", "3"])],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { domain: None, version: Some(13) };
    ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
}

#[test]
fn features_come_out_row_by_row() {
    let Some(runtime) = runtime() else { return };
    let session = runtime.session(&channel_means(tensor_proto::DataType::Float), &ON_CPU).unwrap();
    assert_eq!((session.provider(), session.width(), session.fallback()), ("CPU", Some(3), None));
    assert_eq!(session.placement().keys().collect::<Vec<_>>(), ["CPU"]);
    let batch: Vec<f32> = (0_u8..24).map(f32::from).collect();
    assert_eq!(session.run(&batch, [2, 3, 2, 2]).unwrap(), [1.5, 5.5, 9.5, 13.5, 17.5, 21.5]);
    // Any size and any batch, also none.
    assert_eq!(session.run(&batch[..3], [1, 3, 1, 1]).unwrap(), [0.0, 1.0, 2.0]);
    assert_eq!(session.run(&[], [0, 3, 2, 2]).unwrap(), [0.0; 0]);
}

/// Batches and sizes differ, so that no thread can use what another has left behind.
fn features_of(session: &Session, seed: usize) -> Vec<u32> {
    let (images, side) = (1 + seed % 5, 1 + seed % 7);
    let pixel = |index: usize| ((seed * 31 + index * 17) % 251) as f32 / 3.0;
    let batch: Vec<f32> = (0..images * 3 * side * side).map(pixel).collect();
    session.run(&batch, [images, 3, side, side]).unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn threads_that_share_a_session_get_the_bits_of_one() {
    let Some(runtime) = runtime() else { return };
    let session = || runtime.session(&channel_means(tensor_proto::DataType::Float), &ON_CPU).unwrap();
    let (together, on_card) = (session(), session().into_card());
    assert_eq!([&together, &on_card].map(Session::takes_turns), [false, true]);
    let alone: Vec<_> = (0..200).map(|seed| features_of(&together, seed)).collect();
    for session in [&together, &on_card] {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|seed| assert_eq!(features_of(session, seed), alone[seed], "{seed}")));
            }
        });
    }
}

#[test]
fn a_uint8_network_gets_rounded_pixels() {
    let Some(runtime) = runtime() else { return };
    let session = || runtime.session(&channel_means(tensor_proto::DataType::Uint8), &ON_CPU).unwrap();
    for session in [session(), session().into_card()] {
        assert_eq!(session.run(&[254.6, -3.0, 7.4], [1, 3, 1, 1]).unwrap(), [255.0, 0.0, 7.0]);
    }
}

#[test]
fn what_cannot_be_run_is_said() {
    let Some(runtime) = runtime() else { return };
    let refused = |model: &[u8]| runtime.session(model, &ON_CPU).map(|_| ()).unwrap_err().to_string();
    let garbage = refused(b"garbage");
    assert!(garbage.starts_with("the network cannot be run: ") && !garbage.contains("ONNXRuntimeError"), "{garbage}");
    assert!(refused(&channel_means(tensor_proto::DataType::Int64)).contains("not four-dimensional float32 or uint8"));
    let mut two = ModelProto::decode(&*channel_means(tensor_proto::DataType::Float)).unwrap();
    two.graph.as_mut().unwrap().output.push(tensor("pooled", tensor_proto::DataType::Float, &["N", "3", "1", "1"]));
    assert!(refused(&two.encode_to_vec()).contains("1 inputs and 2 outputs"));
    let session = runtime.session(&channel_means(tensor_proto::DataType::Float), &ON_CPU).unwrap();
    let error = session.run(&[0.0; 5], [1, 3, 2, 2]).unwrap_err().to_string();
    assert!(error.contains("5 values, not 12"), "{error}");
    let error = session.run(&[0.0; 4], [1, 4, 1, 1]).unwrap_err().to_string();
    assert!(error.contains("[1, 4, 1, 1]") && error.contains("Expected: 3"), "{error}");
    assert!(session.run(&[], [1, 3, 0, 0]).unwrap_err().to_string().contains("empty"));
}

#[test]
fn one_runtime_a_process() {
    let Some(library) = library() else { return };
    let (first, second) = (Runtime::start(&library).unwrap(), Runtime::start(&library).unwrap());
    drop(first);
    assert!(second.session(&channel_means(tensor_proto::DataType::Float), &ON_CPU).is_ok());
    let other = Library { path: "/elsewhere/libonnxruntime.so".into(), ..library };
    let error = Runtime::start(&other).unwrap_err().to_string();
    assert!(error.contains("loaded already") && error.contains("/elsewhere"), "{error}");
}

#[test]
fn cuda_works_or_says_why_it_does_not() {
    let Some(runtime) = runtime() else { return };
    let model = channel_means(tensor_proto::DataType::Float);
    let session = |device| {
        let compute = Compute::new(device, Provider::Default, Precision::Fp32).unwrap();
        runtime.session(&model, &SessionOptions { compute, threads: 1 })
    };
    match session(Device::Cuda(0)) {
        Ok(session) => assert!(session.placement().contains_key("CUDA")),
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("device cuda: CUDA cannot be used: ") && error.contains("--device cpu"), "{error}");
            let session = session(Device::Auto).unwrap();
            assert_eq!(session.provider(), "CPU");
            assert!(error.contains(session.fallback().unwrap()));
        }
    }
}

#[test]
fn openvino_is_not_run_by_a_build_without_it() {
    let Some(runtime) = runtime() else { return };
    let compute = Compute::new(Device::Cpu, Provider::OpenVino, Precision::Fp32).unwrap();
    let model = channel_means(tensor_proto::DataType::Float);
    // The library may be one that the environment names and that has OpenVINO.
    if let Err(error) = runtime.session(&model, &SessionOptions { compute, threads: 1 }) {
        let said = error.to_string();
        assert!(said.starts_with("provider openvino in fp32: ") && said.contains("doctor --install openvino"), "{said}");
    }
}

/// The engine may fill batches as it likes: neighbours, batch size and threads change no bit of a row.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    let (Some(root), Some(runtime)) = (std::env::var_os("TLPIPE_ASSETS"), runtime()) else {
        println!("skipped: TLPIPE_ASSETS is not set");
        return;
    };
    let path = Path::new(&root).join("models/mobilenet_v2_1.0_224.onnx");
    let mut model = ModelProto::decode(&*std::fs::read(path).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let last = graph.node.iter().position(|node| node.op_type() == "Flatten").unwrap();
    graph.node.truncate(last + 1);
    graph.value_info.clear();
    graph.input = vec![tensor("input", tensor_proto::DataType::Float, &["N", "H", "W", "3"])];
    graph.output = vec![tensor(&graph.node[last].output[0], tensor_proto::DataType::Float, &["N", "1280"])];
    let model = model.encode_to_vec();
    let (images, side) = (16, 96);
    let size = side * side * 3;
    let pixels: Vec<f32> = (0..images * size).map(|index| ((index * 7919 + index / 97) % 256) as f32 / 127.5 - 1.0).collect();
    let features = |threads: usize, batch: usize| -> Vec<u32> {
        let session = runtime.session(&model, &SessionOptions { compute: Compute::CPU, threads }).unwrap();
        let runs = pixels.chunks(batch * size).map(|chunk| session.run(chunk, [chunk.len() / size, side, side, 3]).unwrap());
        runs.flatten().map(f32::to_bits).collect()
    };
    let one_by_one = features(1, 1);
    assert_eq!(one_by_one.len(), images * 1280);
    for (threads, batch) in [(1, 3), (1, 8), (1, 16), (2, 8)] {
        assert!(features(threads, batch) == one_by_one, "{threads} threads, batches of {batch}");
    }
}
