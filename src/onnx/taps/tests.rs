use super::super::fixture::Builder;
use super::super::networks::{convnext, densenet, efficientnet, inception, linear, resnet, vgg, vision_transformer};
use super::super::{Layers, OnnxError, Segment, cut_segments, find_cut, input, segments};
use super::*;

/// Taps of a model that is cut by itself.
fn found(model: &Model) -> Vec<Tap> {
    taps(model, &find_cut(model, None).unwrap()).unwrap()
}

fn widths(model: &Model) -> Vec<usize> {
    found(model).iter().map(|tap| tap.channels).collect()
}

fn read(model: &Model, layers: &str) -> Result<Vec<Segment>, OnnxError> {
    segments(model, &find_cut(model, None).unwrap(), &layers.parse().unwrap())
}

fn refused(model: &Model, layers: &str) -> String {
    read(model, layers).unwrap_err().to_string()
}

#[test]
fn activations_of_every_family_are_found() {
    for (name, model, expected) in [
        ("plain", Builder::nchw(13).classifier(), vec![8]),
        ("resnet", resnet(13), vec![8, 8, 8, 16]),
        ("resnet of old", resnet(9), vec![8, 8, 8, 16]),
        ("efficientnet", efficientnet(13, false), vec![8, 24, 24, 24, 24]),
        ("mobilenet v3", efficientnet(11, true), vec![8, 24, 24, 24, 24]),
        ("vgg", vgg(), vec![8, 8, 16]),
        ("densenet", densenet(), vec![8, 8, 14, 20, 10]),
        ("inception", inception(), vec![8, 6, 6, 4]),
        ("vision transformer", vision_transformer(), vec![24, 24]),
        ("convnext", convnext(17), vec![8, 32]),
        ("no activation", linear(), vec![8, 12]),
    ] {
        assert_eq!(widths(&model), expected, "{name}: {:#?}", found(&model));
        let all = read(&model, "multi-all").unwrap();
        let cut = find_cut(&model, None).unwrap();
        assert_eq!(all.last().unwrap().tensor, cut.tensor, "{name}");
        let mut end = 0;
        for segment in &all {
            assert_eq!(segment.offset, end, "{name}");
            end += segment.width;
        }
        let made = cut_segments(&model, &all).unwrap();
        let again = find_cut(&made, None).unwrap();
        assert_eq!((again.features, again.pooling), (Some(end), Pooling::None), "{name}");
    }
}

#[test]
fn what_a_tap_is_made_by_and_where_its_positions_are() {
    let taps = found(&resnet(13));
    assert_eq!(taps.iter().map(|tap| tap.positions.clone()).collect::<Vec<_>>(), [[16, 16], [16, 16], [16, 16], [8, 8]]);
    assert!(taps.iter().all(|tap| tap.produced_by.starts_with("Relu \"node_relu_")), "{taps:?}");
    let last = |model: &Model| found(model).pop().unwrap();
    assert!(last(&efficientnet(13, false)).produced_by.starts_with("Mul"), "the product, not its Sigmoid");
    assert_eq!(last(&convnext(18)).positions, [16, 16]);
    let tokens = last(&vision_transformer());
    assert_eq!((tokens.positions.as_slice(), tokens.produced_by.starts_with("Add")), (&[17][..], true));
}

#[test]
fn maps_stay_maps_until_one_flatten_and_are_averaged_behind_their_makers() {
    let model = resnet(13);
    let made = cut_segments(&model, &read(&model, "multi-all").unwrap()).unwrap();
    let operators: Vec<&str> = made.graph().node.iter().map(NodeProto::op_type).collect();
    let count = |op: &str| operators.iter().filter(|found| **found == op).count();
    assert_eq!((count("GlobalAveragePool"), count("Concat"), count("Flatten")), (5, 1, 1), "{operators:?}");
    assert_eq!(operators[..4], ["Conv", "BatchNormalization", "Relu", "GlobalAveragePool"]);
    // Channels last and channels first in one row.
    let mixed = convnext(18);
    let made = cut_segments(&mixed, &read(&mixed, "multi-all").unwrap()).unwrap();
    assert_eq!(made.graph().node.last().unwrap().op_type(), "Concat");
    // What stands behind the last tensor is dropped.
    let early = &read(&model, "multi-all").unwrap()[..2];
    let made = cut_segments(&model, early).unwrap();
    assert_eq!(made.graph().node.iter().filter(|node| node.op_type() == "Conv").count(), 2);
}

#[test]
fn a_fixed_size_and_a_fixed_batch_are_opened_as_with_one_tensor() {
    let net = || super::super::fixture::Builder::new(13, &[1, 3, 32, 32], super::super::proto::tensor_proto::DataType::Float);
    let model = net().backbone().average_pool(8).flatten().gemm(16, 10).finish();
    let all = read(&model, "multi-all").unwrap();
    assert_eq!(all.iter().map(|segment| segment.width).collect::<Vec<_>>(), [8, 16]);
    let taken = input(&cut_segments(&model, &all).unwrap()).unwrap();
    assert_eq!(taken.shape, [None, Some(3), None, None]);
    let tokens = vision_transformer();
    let taken = input(&cut_segments(&tokens, &read(&tokens, "multi-all").unwrap()).unwrap()).unwrap();
    assert_eq!((taken.batch(), taken.side), (None, Some(32)), "the weights of positions fix the image size");
}

#[test]
fn layers_are_named_in_words_names_and_patterns() {
    let model = resnet(13);
    let tensors = |layers: &str| read(&model, layers).unwrap().into_iter().map(|segment| segment.tensor).collect::<Vec<_>>();
    let cut = find_cut(&model, None).unwrap().tensor;
    assert_eq!(tensors("pooled"), std::slice::from_ref(&cut));
    // In ascending depth, once each, and the cut's own average not again.
    let relus: Vec<String> = found(&model).into_iter().map(|tap| tap.tensor).collect();
    assert_eq!(tensors("relu_*"), [relus.as_slice(), std::slice::from_ref(&cut)].concat());
    let backwards = format!("{},{},relu_2", relus[2], relus[0]);
    assert_eq!(tensors(&backwards), [relus[0].clone(), relus[2].clone(), cut.clone()]);
    assert_eq!(tensors("conv_0").len(), 2, "any map can be named");
    let listed: Layers = serde_json::from_str("[\"conv_0\", \"relu_*\"]").unwrap();
    assert_eq!(listed, "conv_0,relu_*".parse().unwrap());
    assert_eq!(serde_json::to_string(&listed).unwrap(), "[\"conv_0\",\"relu_*\"]");
    assert_eq!(serde_json::to_string(&Layers::MultiAll).unwrap(), "\"multi-all\"");
    for nothing in ["", "a,,b"] {
        assert!(nothing.parse::<Layers>().is_err(), "{nothing}");
    }
    assert!(serde_json::from_str::<Layers>("[]").is_err());
    let said = serde_json::from_str::<Layers>("3").unwrap_err().to_string();
    assert!(said.contains("multi-all"), "{said}");
}

#[test]
fn layers_that_cannot_be_read_are_refused_with_a_remedy() {
    let model = resnet(13);
    let said = refused(&model, "relu_3");
    assert!(said.contains("\"relu_3\"") && said.contains("did you mean") && said.contains("relu_2"), "{said}");
    let said = refused(&model, "mutli");
    assert!(said.contains("did you mean") && said.contains("multi"), "{said}");
    let said = refused(&model, "block_*/out");
    assert!(said.contains("no tensor fits") && said.contains("models inspect"), "{said}");
    let said = refused(&model, "relu_[");
    assert!(said.contains("relu_[") && said.contains("pattern"), "{said}");
    let said = refused(&model, "softmax_*");
    assert!(said.contains("softmax_") && said.contains("does not need it"), "{said}");
    let gated = efficientnet(13, false);
    let squeeze = gated.graph().node.iter().find(|node| node.op_type() == "GlobalAveragePool").unwrap();
    let said = refused(&gated, &squeeze.output[0]);
    assert!(said.contains("one position"), "{said}");
    let said = refused(&vgg(), "gemm_*");
    assert!(said.contains("does not need it"), "{said}");
    let tokens = vision_transformer();
    let inner = find_cut(&tokens, None).unwrap().tensor;
    assert_eq!(read(&tokens, &inner).unwrap().len(), 1, "the cut itself is there in any case");
    let shape = "shape_*";
    let said = refused(&tokens, shape);
    assert!(said.contains("int64") || said.contains("floating-point"), "{said}");
    let early = Builder::nchw(13).op("GlobalAveragePool").flatten().gemm(3, 16).op("Relu").gemm(16, 10).op("Softmax").finish();
    let said = find_cut(&early, None).and_then(|cut| segments(&early, &cut, &Layers::Multi)).unwrap_err().to_string();
    assert!(said.contains("no feature map is found") && said.contains("--layers pooled"), "{said}");
}

#[test]
fn multi_takes_of_the_stages_in_turn_and_leaves_the_largest_maps_out() {
    let multi = |model: &Model| found(model).iter().map(|tap| tap.multi).collect::<Vec<_>>();
    // Two stages: of the first nothing, of the last what the cut does not average.
    assert_eq!(multi(&resnet(13)), [false, false, false, true]);
    // One stage.
    assert_eq!(multi(&vision_transformer()), [true, true]);
    let mut net = Builder::nchw(13).conv(8, 3, 1).op("Relu");
    for (channels, stride) in [(2000, 2), (3000, 1), (1500, 2), (2500, 1), (500, 2), (600, 1), (7000, 1)] {
        net = net.conv(1, 1, 1).conv(channels, 1, stride).op("Relu");
    }
    let model = net.conv(192, 1, 1).op("Relu").op("GlobalAveragePool").flatten().gemm(192, 10).finish();
    // 8,000 values for taps: 2,500 and 3,000 are the deepest of their stages, then 1,500, and 2,000 no more; of the last one
    // 600, and 500 no more than fits.
    let widths: Vec<usize> = found(&model).iter().filter(|tap| tap.multi).map(|tap| tap.channels).collect();
    assert_eq!(widths, [3000, 1500, 2500, 600]);
}

#[test]
fn a_row_that_gets_too_wide_is_refused_with_the_limit() {
    let mut net = Builder::nchw(13).conv(8, 1, 8);
    for _ in 0..20 {
        net = net.conv(4096, 1, 1).op("Relu").conv(1, 1, 1);
    }
    let model = net.conv(8, 1, 1).op("Relu").op("GlobalAveragePool").flatten().gemm(8, 10).finish();
    let said = refused(&model, "multi-all");
    assert!(said.contains("81928 values") && said.contains("65536"), "{said}");
    assert_eq!(read(&model, "multi").unwrap().iter().map(|segment| segment.width).sum::<usize>(), 4096 + 8);
}
