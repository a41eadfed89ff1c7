//! Reading and making constants and attributes.

use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::DataType;
use super::proto::{AttributeProto, NodeProto, TensorProto};

/// The values of an integer tensor; none where it is of another type or damaged.
pub(super) fn integers(tensor: &TensorProto) -> Option<Vec<i64>> {
    let raw = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty());
    let values = match (DataType::try_from(tensor.data_type()).ok()?, raw) {
        (DataType::Int64, Some(raw)) => {
            raw.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect()
        }
        (DataType::Int32, Some(raw)) => {
            raw.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap_or_default()).into()).collect()
        }
        (DataType::Int64, None) => tensor.int64_data.clone(),
        (DataType::Int32, None) => tensor.int32_data.iter().map(|&value| value.into()).collect(),
        _ => return None,
    };
    whole(tensor, values)
}

/// The values of a floating-point tensor; none where it is of another type or damaged.
pub(super) fn floats(tensor: &TensorProto) -> Option<Vec<f64>> {
    let raw = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty());
    let values = match (DataType::try_from(tensor.data_type()).ok()?, raw) {
        (DataType::Float, Some(raw)) => {
            raw.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap_or_default()).into()).collect()
        }
        (DataType::Double, Some(raw)) => {
            raw.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default())).collect()
        }
        (DataType::Float16, Some(raw)) => {
            raw.chunks_exact(2).map(|b| half(u16::from_le_bytes(b.try_into().unwrap_or_default()))).collect()
        }
        (DataType::Float, None) => tensor.float_data.iter().map(|&value| value.into()).collect(),
        (DataType::Double, None) => tensor.double_data.clone(),
        (DataType::Float16, None) => {
            tensor.int32_data.iter().map(|&bits| half(u16::try_from(bits).unwrap_or_default())).collect()
        }
        _ => return None,
    };
    whole(tensor, values)
}

fn whole<T>(tensor: &TensorProto, values: Vec<T>) -> Option<Vec<T>> {
    let expected = tensor.dims.iter().try_fold(1_i64, |product, &dim| product.checked_mul(dim))?;
    (usize::try_from(expected) == Ok(values.len())).then_some(values)
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    match i32::from(bits >> 10 & 0x1f) {
        0 => sign * fraction * 2_f64.powi(-14),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        exponent => sign * (1.0 + fraction) * 2_f64.powi(exponent - 15),
    }
}

/// A number as IEEE 754 binary16, rounded to the nearest, of two the even one; what is too large becomes an infinity.
pub(super) fn half_bits(value: f32) -> u16 {
    /// The first that is rounded to an infinity, and the least that is not subnormal.
    const TOO_LARGE: u32 = 0x477f_f000;
    const NORMAL: u32 = 0x3880_0000;
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    sign | match magnitude {
        0x7f80_0001.. => 0x7e00,
        TOO_LARGE.. => 0x7c00,
        NORMAL.. => {
            let rebased = magnitude - (112 << 23);
            ((rebased + 0xfff + (rebased >> 13 & 1)) >> 13) as u16
        }
        // In units of 2^-24, at most 1,024 of them.
        _ => (f32::from_bits(magnitude) * 16_777_216.0).round_ties_even() as u16,
    }
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

/// An integer attribute.
pub(super) fn int(node: &NodeProto, name: &str) -> Option<i64> {
    attribute(node, name)?.i
}

/// A list of integers; none where the node does not have it.
pub(super) fn ints<'n>(node: &'n NodeProto, name: &str) -> Option<&'n [i64]> {
    attribute(node, name).map(|attribute| attribute.ints.as_slice())
}

/// A text attribute.
pub(super) fn text<'n>(node: &'n NodeProto, name: &str) -> Option<&'n str> {
    std::str::from_utf8(attribute(node, name)?.s.as_deref()?).ok()
}

/// The tensor that a Constant node gives, whichever of its attributes holds it.
pub(super) fn constant_value(node: &NodeProto) -> Option<TensorProto> {
    let attribute = node.attribute.first()?;
    let tensor =
        |dims: Vec<i64>, data_type: DataType| TensorProto { dims, data_type: Some(data_type as i32), ..TensorProto::default() };
    match attribute.name() {
        "value" => attribute.t.clone(),
        "value_int" => Some(TensorProto { int64_data: vec![attribute.i()], ..tensor(vec![], DataType::Int64) }),
        "value_float" => Some(TensorProto { float_data: vec![attribute.f()], ..tensor(vec![], DataType::Float) }),
        "value_ints" => {
            let dims = vec![i64::try_from(attribute.ints.len()).ok()?];
            Some(TensorProto { int64_data: attribute.ints.clone(), ..tensor(dims, DataType::Int64) })
        }
        "value_floats" => {
            let dims = vec![i64::try_from(attribute.floats.len()).ok()?];
            Some(TensorProto { float_data: attribute.floats.clone(), ..tensor(dims, DataType::Float) })
        }
        _ => None,
    }
}

/// A one-dimensional int64 tensor.
pub(super) fn int64_tensor(values: &[i64]) -> TensorProto {
    TensorProto {
        dims: vec![i64::try_from(values.len()).unwrap_or(i64::MAX)],
        data_type: Some(DataType::Int64 as i32),
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// Makes an integer attribute.
pub(super) fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

/// Makes an attribute that is a list of integers.
pub(super) fn ints_attribute(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

/// Makes an attribute that is a tensor.
pub(super) fn tensor_attribute(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Tensor as i32),
        t: Some(value),
        ..AttributeProto::default()
    }
}

/// Makes a node of the standard operators, named after its output.
pub(super) fn node(op_type: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        name: Some(output.to_owned()),
        op_type: Some(op_type.to_owned()),
        attribute,
        ..NodeProto::default()
    }
}

#[cfg(test)]
mod tests {
    use prost::bytes::Bytes;

    use super::*;

    #[test]
    fn half_floats_are_read() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x3555, 0.333_251_953_125), (0x0001, 2_f64.powi(-24)), (0, 0.0)] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
        for bits in (0..=u16::MAX).filter(|bits| !half(*bits).is_nan()) {
            assert_eq!(half_bits(half(bits) as f32), bits);
        }
        // Halfway between two, the even one.
        for (value, bits) in [(1.0 + 1.0 / 2048.0, 0x3c00), (1.0 + 3.0 / 2048.0, 0x3c02), (65_519.9, 0x7bff), (65_520.0, 0x7c00)]
        {
            assert_eq!(half_bits(value), bits, "{value}");
        }
    }

    #[test]
    fn raw_and_typed_integers_agree_and_a_short_tensor_is_refused() {
        let typed = int64_tensor(&[1, -1, 1280]);
        let raw = TensorProto {
            raw_data: Some(Bytes::from([1_i64, -1, 1280].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())),
            int64_data: Vec::new(),
            ..typed.clone()
        };
        assert_eq!(integers(&typed), Some(vec![1, -1, 1280]));
        assert_eq!(integers(&raw), integers(&typed));
        assert_eq!(integers(&TensorProto { dims: vec![4], ..typed }), None);
    }
}
