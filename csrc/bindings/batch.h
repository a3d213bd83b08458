// What the executors' bindings share: a step's batch from NumPy arrays, and its captures as NumPy arrays.
#pragma once
#include <utility>

#include "capture.h"
#include "common.h"
#include "step.h"

namespace pyllm {

// All throw Error(array) for an array of another dtype or shape.
Batch batch_of(const py::array& ids, const py::array& positions, const py::array& starts, const py::array& context,
               const py::array& block_table, const py::array& logit_rows);
// What only some programs ask for; None: nothing.
void add_optional(Batch& batch, const py::object& token_types, const py::object& cross_table,
                  const py::object& cross_context);
// (values, weights): the buffers in the order asked for; for each attention the arrays of every sequence.
std::pair<py::list, py::list> lists_of(Capture&& capture);

}  // namespace pyllm
