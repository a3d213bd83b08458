#include "batch.h"

#include <pybind11/stl.h>

#include <memory>

#include "errors.h"

namespace pyllm {
namespace {

py::array_t<float> array_of(Array array) {
  auto held = std::make_unique<Array>(std::move(array));
  float* data = held->floats();
  const std::vector<int64_t> shape = held->shape;
  if (data == nullptr) return py::array_t<float>(shape);
  const py::capsule owner(held.release(), [](void* p) { delete static_cast<Array*>(p); });
  return py::array_t<float>(shape, data, owner);
}

}  // namespace

Batch batch_of(const py::array& ids, const py::array& positions, const py::array& starts, const py::array& context,
               const py::array& block_table, const py::array& logit_rows) {
  Batch b{};
  b.ids = data_of<int32_t>(ids, "batch.ids", {-1});
  b.rows = ids.shape(0);
  b.positions = data_of<int32_t>(positions, "batch.positions", {b.rows});
  b.context = data_of<int32_t>(context, "batch.context", {-1});
  b.sequences = context.shape(0);
  b.starts = data_of<int32_t>(starts, "batch.starts", {b.sequences + 1});
  b.block_table = data_of<int32_t>(block_table, "batch.block_table", {b.sequences, -1});
  b.table_width = block_table.shape(1);
  b.logit_rows = data_of<int32_t>(logit_rows, "batch.logit_rows", {-1});
  b.logits = logit_rows.shape(0);
  if (b.rows > INT32_MAX / 2) throw Error(ErrorKind::array, "[batch] a step can have 2^30 rows; divide it");
  return b;
}

void add_optional(Batch& b, const py::object& token_types, const py::object& cross_table,
                  const py::object& cross_context) {
  if (!token_types.is_none())
    b.token_types = data_of<int32_t>(token_types.cast<py::array>(), "batch.token_types", {b.rows});
  if (!cross_table.is_none()) {
    const py::array table = cross_table.cast<py::array>();
    b.cross_table = data_of<int32_t>(table, "batch.cross_table", {b.sequences, -1});
    b.cross_width = table.shape(1);
  }
  if (!cross_context.is_none())
    b.cross_context = data_of<int32_t>(cross_context.cast<py::array>(), "batch.cross_context", {b.sequences});
}

std::pair<py::list, py::list> lists_of(Capture&& capture) {
  py::list values, weights;
  for (Array& value : capture.values) values.append(array_of(std::move(value)));
  for (std::vector<Array>& op : capture.weights) {
    py::list sequences;
    for (Array& sequence : op) sequences.append(array_of(std::move(sequence)));
    weights.append(sequences);
  }
  return {values, weights};
}

std::vector<std::vector<std::tuple<int64_t, double, double, double>>> timings_of(
    const std::vector<RoutineTimes>& times) {
  std::vector<std::vector<std::tuple<int64_t, double, double, double>>> all;
  for (const RoutineTimes& routine : times) {
    all.emplace_back();
    const auto add = [&](const OpTime& t) { all.back().emplace_back(t.calls, t.seconds, t.waited, t.bytes); };
    for (const OpTime& op : routine.ops) add(op);
    add(routine.setup);
    add(routine.finish);
  }
  return all;
}

}  // namespace pyllm
