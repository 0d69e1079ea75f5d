"""What the compilers make of the GPU kernels of `evaluate`, on a machine without a GPU."""

from test_compile import compile_cuda, instructions, what_triton_makes


def test_the_cuda_kernel_has_a_jump_table_and_no_spills(tmp_path):
    cubin, report = compile_cuda("evaluate", "9.0", tmp_path)
    ((kernel, (stack, stores, loads, registers)),) = (
        (name, numbers) for name, numbers in report.items() if "evaluate_kernel" in name
    )
    # The stack is the library's: where it reduces huge angles of sin, cos and tan, an array of the
    # digits of 2 / pi. Nothing else lies there, so no register is spilled.
    assert (stack, stores, loads) == (40, 0, 0), kernel
    assert registers <= 80, kernel
    opcodes = instructions(cubin)[kernel]
    assert [op for op in opcodes if op.startswith("BRX")], "opcodes are compared one by one"
    assert sum(op.split(".")[0] in ("LDL", "STL") for op in opcodes) <= 6


def test_triton_compiles_once_and_rounds_sums_and_products_one_by_one(tmp_path_factory):
    report = what_triton_makes("compile_triton_evaluate", tmp_path_factory)
    kernel = report["kernel"]
    assert kernel["in float32"] == kernel["not rounded"] == 0
    # For any numbers of samples, columns and programs, with programs by counts and without.
    assert report["launches"] == [2, 8]
