//! The room as a whole on small networks of every family: where they are cut, and what the cut model takes and gives.

use std::path::PathBuf;

use super::fixture::{Builder, text_attribute, value_info};
use super::proto::tensor_proto::DataType;
use super::proto::{NodeProto, StringStringEntryProto};
use super::tensor::{int, int_attribute, ints, ints_attribute};
use super::{Cut, CutReason, EMBEDDING, InputType, Layout, Model, OnnxError, Pooling, cut, find_cut, hints, input, inspect};

/// What makes a tensor.
fn maker<'m>(model: &'m Model, tensor: &str) -> &'m NodeProto {
    let mut nodes = model.graph().node.iter();
    nodes.find(|node| node.output.iter().any(|output| output == tensor)).unwrap_or_else(|| panic!("no {tensor}"))
}

fn operators(model: &Model) -> Vec<&str> {
    model.graph().node.iter().map(NodeProto::op_type).collect()
}

/// Cuts by itself and checks what holds for every cut.
fn cut_of(name: &str, model: &Model, op: &str, features: usize) -> (Cut, Model) {
    let place = find_cut(model, None).unwrap();
    assert_eq!(maker(model, &place.tensor).op_type(), op, "{name}: {}", place.reason);
    assert_eq!(place.features, Some(features), "{name}");
    let cut_model = cut(model, &place).unwrap();
    let outputs: Vec<&str> = cut_model.graph().output.iter().map(|output| output.name()).collect();
    assert_eq!(outputs, [EMBEDDING], "{name}");
    assert_eq!(cut_model.proto().metadata_props, model.proto().metadata_props, "{name}");
    let again = Model::from_bytes(&cut_model.to_bytes(), "again").unwrap();
    // A cut model has no top: cutting it again changes nothing that counts.
    let second = find_cut(&again, None).unwrap();
    assert_eq!((second.features, second.pooling), (Some(features), Pooling::None), "{name}");
    assert!(matches!(second.reason, CutReason::NoTop { .. }), "{name}: {}", second.reason);
    (place, cut_model)
}

#[test]
fn global_pooling_then_dense_layers_in_many_forms() {
    for opset in [7, 11, 13, 17, 18, 21] {
        let pooled = || Builder::nchw(opset).backbone().op("GlobalAveragePool");
        for (name, model) in [
            ("flatten gemm", pooled().flatten().gemm(16, 10).finish()),
            ("dropout gemm", pooled().flatten().op("Dropout").gemm(16, 10).op("Softmax").finish()),
            ("reshape matmul", pooled().reshape(&[-1, 16]).matmul(16, 10).op("Softmax").finish()),
            ("identity two layers", pooled().op("Identity").flatten().gemm(16, 12).op("Relu").gemm(12, 10).finish()),
            ("1x1 conv squeeze", pooled().conv(10, 1, 1).reshape(&[-1, 10]).op("Softmax").finish()),
        ] {
            let name = format!("{name} {opset}");
            let (place, cut_model) = cut_of(&name, &model, "GlobalAveragePool", 16);
            assert_eq!(place.pooling, Pooling::Flatten, "{name}");
            assert!(matches!(place.reason, CutReason::BeforeTop { .. }), "{name}");
            assert_eq!(operators(&cut_model), ["Conv", "Relu", "Conv", "Relu", "GlobalAveragePool", "Flatten"], "{name}");
            assert_eq!(input(&cut_model).unwrap().shape, [None, Some(3), None, None], "{name}");
            assert_eq!(cut_model.graph().initializer.len(), 2, "{name}");
        }
    }
}

#[test]
fn the_reason_is_a_sentence_with_the_operators_in_order() {
    let place = find_cut(&Builder::nchw(13).classifier(), None).unwrap();
    let expected = "output of GlobalAveragePool \"node_globalaveragepool_4\", followed by Flatten, Gemm, Softmax";
    assert_eq!(place.reason.to_string(), expected);
    assert_eq!(serde_json::to_value(&place).unwrap()["reason"], expected);
}

#[test]
fn a_reshape_whose_target_the_graph_computes_is_passed() {
    let mut net = Builder::nchw(12).backbone().op("GlobalAveragePool");
    let pooled = net.last.clone();
    net.integers("zero", &[0]);
    net.integers("rest", &[-1]);
    let net = net.node("Shape", &[&pooled], vec![]);
    let net = {
        let shape = net.last.clone();
        net.node("Gather", &[&shape, "zero"], vec![int_attribute("axis", 0)])
    };
    let net = {
        let batch = net.last.clone();
        net.node("Concat", &[&batch, "rest"], vec![int_attribute("axis", 0)])
    };
    let target = net.last.clone();
    let model = net.node("Reshape", &[&pooled, &target], vec![]).gemm(16, 10).finish();
    cut_of("computed reshape", &model, "GlobalAveragePool", 16);
}

#[test]
fn a_pooling_of_fixed_size_becomes_global() {
    for batch in [0, 1, 4] {
        let net = Builder::new(13, &[batch, 3, 32, 32], DataType::Float).backbone().average_pool(8);
        let (place, cut_model) = cut_of("fixed pool", &net.flatten().gemm(16, 10).finish(), "AveragePool", 16);
        assert_eq!(place.pooling, Pooling::GlobalAverage);
        assert!(operators(&cut_model).contains(&"GlobalAveragePool") && !operators(&cut_model).contains(&"AveragePool"));
        assert_eq!(input(&cut_model).unwrap().shape, [None, Some(3), None, None]);
    }
}

#[test]
fn a_pooling_in_the_backbone_stays() {
    let model =
        Builder::nchw(13).conv(8, 3, 1).average_pool(2).conv(16, 3, 2).op("GlobalAveragePool").flatten().gemm(16, 10).finish();
    let (_, cut_model) = cut_of("inner pool", &model, "GlobalAveragePool", 16);
    assert_eq!(operators(&cut_model), ["Conv", "AveragePool", "Conv", "GlobalAveragePool", "Flatten"]);
}

#[test]
fn means_over_positions_are_pools_in_either_layout() {
    for opset in [11, 13, 18] {
        for keep in [false, true] {
            let top = |net: Builder| if keep { net.flatten() } else { net }.gemm(16, 10).op("Softmax").finish();
            let nchw = top(Builder::nchw(opset).backbone().mean("ReduceMean", &[2, 3], keep));
            cut_of(&format!("mean {opset} {keep}"), &nchw, "ReduceMean", 16);
            let back = vec![ints_attribute("perm", &[0, 2, 3, 1])];
            let net = Builder::nhwc(opset).backbone().op_with("Transpose", back).mean("ReduceMean", &[1, 2], keep);
            let (_, cut_model) = cut_of(&format!("nhwc mean {opset} {keep}"), &top(net), "ReduceMean", 16);
            assert_eq!(input(&cut_model).unwrap().shape, [None, None, None, Some(3)]);
            assert_eq!(input(&cut_model).unwrap().layout, Layout::Nhwc);
        }
    }
    let max = Builder::nchw(13).backbone().op("GlobalMaxPool").flatten().gemm(16, 10).finish();
    cut_of("max", &max, "GlobalMaxPool", 16);
}

#[test]
fn a_flattened_map_is_averaged_instead() {
    let vgg = Builder::nchw(13).backbone().flatten().gemm(1024, 32).op("Relu").op("Dropout").gemm(32, 32).op("Relu").gemm(32, 10);
    let (place, cut_model) = cut_of("vgg", &vgg.finish(), "Relu", 16);
    assert_eq!(place.pooling, Pooling::Mean { axes: vec![2, 3] });
    assert_eq!(operators(&cut_model)[4..], ["GlobalAveragePool", "Flatten"]);
    assert_eq!(input(&cut_model).unwrap().side, None);
    // Converters of TensorFlow flatten the map in their own order.
    let net = Builder::nhwc(13).backbone().op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 3, 1])]);
    let (place, _) = cut_of("nhwc vgg", &net.reshape(&[-1, 1024]).matmul(1024, 10).finish(), "Transpose", 16);
    assert_eq!(place.pooling, Pooling::Mean { axes: vec![1, 2] });
}

#[test]
fn a_scoring_convolution_before_the_pool_is_top() {
    let squeezenet = Builder::nchw(13).backbone().op("Dropout").conv(10, 1, 1).op("Relu").op("GlobalAveragePool").op("Softmax");
    let (place, _) = cut_of("squeezenet", &squeezenet.finish(), "Dropout", 16);
    assert_eq!(place.pooling, Pooling::Mean { axes: vec![2, 3] });
    let without_softmax = Builder::nchw(13).backbone().conv(1000, 1, 1).op("Relu").op("GlobalAveragePool").flatten();
    cut_of("squeezenet without softmax", &without_softmax.finish(), "Relu", 16);
}

/// Patches of 8 x 8 pixels as tokens, a class token before them, one mixing layer.
fn vision_transformer(batch: i64) -> Builder {
    let mut net = Builder::new(17, &[batch, 3, 32, 32], DataType::Float);
    net.weight("patch", &[24, 3, 8, 8]);
    let patches = vec![ints_attribute("kernel_shape", &[8, 8]), ints_attribute("strides", &[8, 8])];
    let mut net = net.node("Conv", &["image", "patch"], patches).reshape(&[batch, 24, 16]);
    net = net.op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 1])]);
    net.weight("positions", &[1, 16, 24]);
    let tokens = net.last.clone();
    net.node("Add", &[&tokens, "positions"], vec![]).matmul(24, 24)
}

#[test]
fn a_class_token_is_cut_before_the_last_dense_layer() {
    let mut net = vision_transformer(0);
    net.graph.initializer.push(super::proto::TensorProto {
        name: Some("first".into()),
        data_type: Some(DataType::Int64 as i32),
        int64_data: vec![0],
        ..Default::default()
    });
    let tokens = net.last.clone();
    let model = net.node("Gather", &[&tokens, "first"], vec![int_attribute("axis", 1)]).gemm(24, 10).finish();
    let (place, cut_model) = cut_of("vit", &model, "Gather", 24);
    assert_eq!(place.pooling, Pooling::None);
    let taken = input(&cut_model).unwrap();
    assert_eq!((taken.batch(), taken.side), (None, Some(32)), "position weights fix the image size");
}

#[test]
fn averaged_tokens_are_cut_after_the_average() {
    let model = vision_transformer(0).mean("ReduceMean", &[1], false).gemm(24, 10).finish();
    cut_of("token mean", &model, "ReduceMean", 24);
    let (place, _) = cut_of("tokens", &vision_transformer(0).finish(), "Add", 24);
    assert_eq!(place.pooling, Pooling::Mean { axes: vec![1] });
}

#[test]
fn a_fixed_batch_is_opened_in_reshapes_where_that_is_right() {
    let model = vision_transformer(1).mean("ReduceMean", &[1], false).gemm(24, 10).finish();
    let (_, cut_model) = cut_of("fixed batch", &model, "ReduceMean", 24);
    let taken = input(&cut_model).unwrap();
    assert_eq!((taken.batch(), taken.side), (None, Some(32)));
    // The channel shuffle of ShuffleNet, written for one image of one size.
    let shuffle = Builder::new(13, &[1, 3, 32, 32], DataType::Float).backbone().reshape(&[1, 2, 8, 8, 8]);
    let shuffle = shuffle.op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 1, 3, 4])]).reshape(&[1, 16, 8, 8]);
    let model = shuffle.op("GlobalAveragePool").flatten().gemm(16, 10).finish();
    let (_, cut_model) = cut_of("shuffle", &model, "GlobalAveragePool", 16);
    let taken = input(&cut_model).unwrap();
    assert_eq!((taken.batch(), taken.side), (None, Some(32)));
}

#[test]
fn a_fixed_batch_that_is_woven_in_stays() {
    // The batch is the second axis here, and a Reshape names its product with the heads.
    let net = vision_transformer(1).op_with("Transpose", vec![ints_attribute("perm", &[1, 0, 2])]).reshape(&[16, 4, 6]);
    let net = net.reshape(&[16, 1, 24]).op_with("Transpose", vec![ints_attribute("perm", &[1, 0, 2])]);
    let (_, cut_model) = cut_of("woven batch", &net.mean("ReduceMean", &[1], false).gemm(24, 10).finish(), "ReduceMean", 24);
    assert_eq!(input(&cut_model).unwrap().batch(), Some(1));
}

#[test]
fn an_export_without_a_top_is_used_as_it_is() {
    let map = Builder::nchw(13).backbone();
    let (place, _) = cut_of("map", &map.clone().finish(), "Relu", 16);
    assert_eq!(place.pooling, Pooling::Mean { axes: vec![2, 3] });
    assert!(matches!(place.reason, CutReason::NoTop { .. }));
    let (place, _) = cut_of("pooled", &map.clone().op("GlobalAveragePool").finish(), "GlobalAveragePool", 16);
    assert_eq!(place.pooling, Pooling::Flatten);
    let (place, _) = cut_of("rows", &map.op("GlobalAveragePool").flatten().finish(), "Flatten", 16);
    assert_eq!(place.pooling, Pooling::None);
    let nhwc =
        Builder::nhwc(13).backbone().conv(24, 1, 1).op("Relu").op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 3, 1])]);
    let (place, _) = cut_of("nhwc map", &nhwc.clone().finish(), "Transpose", 24);
    assert_eq!(place.pooling, Pooling::Mean { axes: vec![1, 2] });
    let mut modern = Builder::nhwc(18).backbone().op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 3, 1])]);
    modern.graph.doc_string = Some("kept".into());
    let (_, cut_model) = cut_of("nhwc map 18", &modern.finish(), "Transpose", 16);
    let mean = maker(&cut_model, EMBEDDING);
    assert_eq!((mean.input.len(), ints(mean, "axes"), int(mean, "keepdims")), (2, None, Some(0)));
    assert_eq!(cut_model.graph().doc_string(), "kept");
    let (_, cut_model) = cut_of("nhwc map 13", &nhwc.finish(), "Transpose", 24);
    assert_eq!(ints(maker(&cut_model, EMBEDDING), "axes"), Some([1, 2].as_slice()));
}

#[test]
fn of_several_outputs_the_deepest_classifier_counts() {
    let net = Builder::nchw(13).conv(8, 3, 2).op("Relu");
    let middle = net.last.clone();
    let mut net = net.op("GlobalAveragePool").flatten().gemm(8, 10).output();
    net.last = middle;
    let mut net = net.node("Relu", &["relu_1"], vec![]);
    net.weight("late", &[16, 8, 3, 3]);
    let relu = net.last.clone();
    let net =
        net.node("Conv", &[&relu, "late"], vec![]).op("Relu").output().op("GlobalAveragePool").flatten().gemm(16, 10).output();
    let (_, cut_model) = cut_of("auxiliary", &net.finish(), "GlobalAveragePool", 16);
    assert_eq!(operators(&cut_model).iter().filter(|op| **op == "GlobalAveragePool").count(), 1);
}

#[test]
fn half_precision_goes_in_and_out_as_float32() {
    let net = || Builder::new(13, &[0, 3, 32, 32], DataType::Float16).backbone();
    for (name, model, op) in [
        ("half", net().op("GlobalAveragePool").flatten().gemm(16, 10).op("Softmax").finish(), "GlobalAveragePool"),
        ("half map", net().finish(), "Relu"),
    ] {
        assert_eq!(input(&model).unwrap().dtype, InputType::Float16);
        let (_, cut_model) = cut_of(name, &model, op, 16);
        assert_eq!(input(&cut_model).unwrap().dtype, InputType::Float32);
        assert_eq!(operators(&cut_model)[0], "Cast");
        assert_eq!(operators(&cut_model).iter().filter(|op| **op == "Cast").count(), 2);
    }
}

#[test]
fn bytes_stay_bytes() {
    let net = Builder::new(13, &[0, 0, 0, 3], DataType::Uint8).op_with("Cast", vec![int_attribute("to", 1)]);
    let net = net
        .op_by("Div", &[], &[127.5])
        .op_by("Sub", &[], &[1.0])
        .op_with("Transpose", vec![ints_attribute("perm", &[0, 3, 1, 2])]);
    let model = net.classifier();
    let (_, cut_model) = cut_of("bytes", &model, "GlobalAveragePool", 16);
    let taken = input(&cut_model).unwrap();
    assert_eq!((taken.dtype, taken.layout), (InputType::Uint8, Layout::Nhwc));
    let said = hints(&model).unwrap().preprocessing;
    assert_eq!((said.divisor, said.mean, said.std, said.assumed), (1.0, [0.0; 3], [1.0; 3], false));
}

#[test]
fn a_named_tensor_is_used_and_a_misspelt_one_gets_suggestions() {
    let model = Builder::nchw(13).classifier();
    let place = find_cut(&model, Some("relu_1")).unwrap();
    assert_eq!((place.features, &place.pooling), (Some(8), &Pooling::Mean { axes: vec![2, 3] }));
    assert_eq!(operators(&cut(&model, &place).unwrap()), ["Conv", "Relu", "GlobalAveragePool", "Flatten"]);
    let message = |name: &str| find_cut(&model, Some(name)).unwrap_err().to_string();
    assert!(message("Relu1").contains("did you mean one of: relu_1"), "{}", message("Relu1"));
    assert!(message("node_flatten_5").contains("did you mean --cut flatten_5?"), "{}", message("node_flatten_5"));
    assert!(message("qqq").contains("no tensor is named \"qqq\""));
    assert!(message("image").contains("no layer makes") && message("image").contains("candidates: softmax_7"));
    assert!(message("conv_0_weight").contains("no layer makes"));
}

#[test]
fn a_named_tensor_of_another_kind_is_refused() {
    let net = Builder::nchw(13).backbone().op("Shape");
    let shape = net.last.clone();
    let model = net.node("GlobalAveragePool", &["relu_3"], vec![]).flatten().gemm(16, 10).finish();
    let message = find_cut(&model, Some(&shape)).unwrap_err().to_string();
    assert!(message.contains("int64") && message.contains("floating-point"), "{message}");
    let model = Builder::nchw(13).backbone().op_with("Transpose", vec![ints_attribute("perm", &[1, 0, 2, 3])]).output().finish();
    let message = find_cut(&model, Some("transpose_4")).unwrap_err().to_string();
    assert!(message.contains("first axis is not the batch"), "{message}");
}

#[test]
fn a_model_without_an_image_input_is_refused() {
    let text = Builder::new(13, &[0, 128], DataType::Int64).op("Identity").finish();
    let message = find_cut(&text, None).unwrap_err().to_string();
    assert!(message.contains("no image input") && message.contains("\"image\" int64 [d0, 128]"), "{message}");
    let grey = Builder::new(13, &[0, 1, 28, 28], DataType::Float).op("Relu").finish();
    assert!(matches!(input(&grey), Err(OnnxError::NoImageInput { .. })));
}

#[test]
fn what_cannot_be_cut_says_so_and_offers_candidates() {
    let linear = Builder::nchw(13).flatten().gemm(3072, 10).op("Softmax").finish();
    let message = find_cut(&linear, None).unwrap_err().to_string();
    assert!(message.contains("a dense layer on the pixels") && message.contains("--cut TENSOR"), "{message}");
    let mut net = Builder::nchw(13).backbone().op("GlobalAveragePool").flatten();
    net.weight("w", &[16, 10]);
    let rows = net.last.clone();
    let model = net.node("Einsum", &[&rows, "w"], vec![text_attribute("equation", "nd,dk->nk")]).op("Softmax").finish();
    let message = find_cut(&model, None).unwrap_err().to_string();
    assert!(message.contains("Einsum") && message.contains("flatten_5"), "{message}");
    assert_eq!(find_cut(&model, Some("flatten_5")).unwrap().features, Some(16));
    let found = inspect(&model, None).unwrap();
    assert!(found.cut.is_none() && found.problem.unwrap().contains("Einsum"));
}

#[test]
fn a_second_input_is_no_hindrance_unless_the_features_need_it() {
    let mut net = Builder::nchw(13).backbone().op("GlobalAveragePool").flatten();
    net.graph.input.push(value_info("scale", DataType::Float, &[1]));
    let rows = net.last.clone();
    let with_scale = net.clone().node("Mul", &[&rows, "scale"], vec![]).gemm(16, 10).finish();
    let message = find_cut(&with_scale, None).unwrap_err().to_string();
    assert!(message.contains("no output depends on the image") && message.contains(&rows), "{message}");
    let message = find_cut(&with_scale, Some("mul_6")).unwrap_err().to_string();
    assert!(message.contains("input \"scale\"") && message.contains(&rows), "{message}");
    let beside = net.gemm(16, 10).output();
    let scores = beside.last.clone();
    let both = beside.node("Mul", &[&scores, "scale"], vec![]).output().finish();
    let (_, cut_model) = cut_of("second input", &both, "GlobalAveragePool", 16);
    assert_eq!(cut_model.graph().input.len(), 1);
}

#[test]
fn a_fixed_size_that_is_not_square_is_refused() {
    let net = Builder::new(13, &[0, 3, 32, 64], DataType::Float).backbone();
    cut_of("not square but open", &net.clone().op("GlobalAveragePool").flatten().gemm(16, 10).finish(), "GlobalAveragePool", 16);
    let fixed = net.reshape(&[-1, 16, 128]).mean("ReduceMean", &[2], false).gemm(16, 10).finish();
    let message = cut(&fixed, &find_cut(&fixed, None).unwrap()).unwrap_err().to_string();
    assert!(message.contains("32 x 64"), "{message}");
}

#[test]
fn a_tensor_that_has_the_outputs_name_makes_way() {
    let mut net = Builder::nchw(13).conv(8, 3, 2);
    net.graph.node[0].output[0] = EMBEDDING.into();
    net.last = EMBEDDING.into();
    let model = net.op("Relu").op("GlobalAveragePool").flatten().gemm(8, 10).finish();
    let (_, cut_model) = cut_of("name taken", &model, "GlobalAveragePool", 8);
    assert_eq!(maker(&cut_model, EMBEDDING).op_type(), "Flatten");
    let place = find_cut(&model, Some(EMBEDDING)).unwrap();
    assert_eq!(operators(&cut(&model, &place).unwrap()), ["Conv", "GlobalAveragePool", "Flatten"]);
}

#[test]
fn hints_tell_what_the_graph_scales_and_what_is_assumed() {
    let said = |net: Builder| hints(&net.classifier()).unwrap().preprocessing;
    let torch = said(Builder::nchw(13));
    assert_eq!((torch.divisor, torch.mean, torch.assumed), (255.0, [0.485, 0.456, 0.406], true));
    let tensorflow = said(Builder::nhwc(13));
    assert_eq!((tensorflow.divisor, tensorflow.mean, tensorflow.std, tensorflow.assumed), (127.5, [1.0; 3], [1.0; 3], true));
    let caffe = said(Builder::nchw(13).op_by("Sub", &[1, 3, 1, 1], &[123.7, 116.3, 103.5]));
    assert_eq!((caffe.divisor, caffe.assumed), (1.0, false));
    assert!(caffe.reason.contains("Sub"), "{}", caffe.reason);
    let unit =
        said(Builder::nchw(13).op_by("Sub", &[3, 1, 1], &[0.485, 0.456, 0.406]).op_by("Div", &[3, 1, 1], &[0.229, 0.224, 0.225]));
    assert_eq!((unit.divisor, unit.mean, unit.assumed), (255.0, [0.0; 3], false));
    let idle = said(Builder::nchw(13).op_by("Mul", &[], &[1.0]));
    assert!(idle.assumed);
    let mut proto = Builder::nchw(13).classifier().proto().clone();
    proto.metadata_props.push(StringStringEntryProto { key: Some("author".into()), value: Some("Ultralytics".into()) });
    let bytes = prost::Message::encode_to_vec(&proto);
    let said = hints(&Model::from_bytes(&bytes, "yolo").unwrap()).unwrap();
    assert_eq!((said.preprocessing.divisor, said.preprocessing.mean, said.preprocessing.assumed), (255.0, [0.0; 3], false));
    assert_eq!(said.metadata["purpose"], "test");
}

#[test]
fn the_layout_is_told_by_the_graph_where_the_shape_does_not() {
    let open = |net: Builder| input(&net.classifier()).unwrap();
    let nchw = open(Builder::new(13, &[0, 0, 0, 0], DataType::Float));
    assert_eq!((nchw.layout, nchw.side), (Layout::Nchw, None));
    assert!(nchw.layout_reason.contains("convolution"), "{}", nchw.layout_reason);
    let transpose = vec![ints_attribute("perm", &[0, 3, 1, 2])];
    let nhwc = open(Builder::new(13, &[0, 0, 0, 0], DataType::Float).op_with("Transpose", transpose));
    assert_eq!(nhwc.layout, Layout::Nhwc);
    assert_eq!(serde_json::to_value(&nhwc).unwrap()["layout"], "nhwc");
    assert_eq!(serde_json::to_value(&nhwc).unwrap()["dtype"], "float32");
}

#[test]
fn the_real_mobilenet_is_cut_at_its_pooled_feature() {
    let Some(assets) = std::env::var_os("TLPIPE_ASSETS") else {
        println!("skipped: TLPIPE_ASSETS is not set");
        return;
    };
    let path = PathBuf::from(assets).join("models/mobilenet_v2_1.0_224.onnx");
    if !path.is_file() {
        println!("skipped: {} is missing", path.display());
        return;
    }
    let model = Model::read(&path).unwrap();
    let (place, cut_model) = cut_of("mobilenet", &model, "GlobalAveragePool", 1280);
    assert_eq!(place.tensor, "MobilenetV2/Logits/AvgPool");
    assert_eq!(input(&cut_model).unwrap().shape, [None, None, None, Some(3)]);
    let found = inspect(&model, None).unwrap();
    assert_eq!((found.input.layout, found.input.side, found.opset, found.features), (Layout::Nhwc, Some(224), 13, Some(1280)));
    assert_eq!(found.hints.preprocessing.divisor, 127.5);
    assert_eq!(
        found.cut.unwrap().reason.to_string(),
        "output of GlobalAveragePool \"global_average_pooling2d\", followed by Flatten, MatMul, Add, Softmax"
    );
}

/// A damaged file must end in an error or in an answer, never in a panic or a hang.
#[test]
fn damaged_models_never_panic() {
    let whole = [Builder::nchw(13).classifier(), vision_transformer(1).mean("ReduceMean", &[1], false).gemm(24, 10).finish()];
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut readable = 0;
    for model in &whole {
        // Without most of the weights, so that the damage hits the graph.
        let mut proto = model.proto().clone();
        proto.graph.as_mut().unwrap().initializer.retain(|tensor| tensor.dims.len() < 2);
        for bytes in [model.to_bytes(), prost::Message::encode_to_vec(&proto)] {
            for _ in 0..1000 {
                let mut damaged = bytes.clone();
                for _ in 0..=random(4) {
                    let place = random(damaged.len());
                    damaged[place] = random(256) as u8;
                }
                if let Ok(model) = Model::from_bytes(&damaged, "damaged") {
                    readable += 1;
                    let _ = inspect(&model, None);
                    let _ = find_cut(&model, Some("relu_1"));
                }
            }
        }
    }
    assert!(readable > 100, "only {readable} damaged models could be read");
}
