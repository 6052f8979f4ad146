/* See tensorrt_shim.h. Built once per TensorRT major, against that major's headers. */
#include "backend/tensorrt_shim.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>

using namespace nvinfer1;

namespace {

/* Newer enumerators under the numbers that they have had since they came; older headers lack the names. */
constexpr int32_t TYPE_FLOAT = 0, TYPE_HALF = 1, TYPE_INT8 = 2, TYPE_INT32 = 3, TYPE_BOOL = 4, TYPE_UINT8 = 5,
                  TYPE_BF16 = 7, TYPE_INT64 = 8;

dpi_dtype dtype_of(DataType type)
{
    switch (static_cast<int32_t>(type)) {
    case TYPE_FLOAT: return DPI_F32;
    case TYPE_HALF: return DPI_F16;
    case TYPE_INT8: return DPI_I8;
    case TYPE_INT32: return DPI_I32;
    case TYPE_BOOL: return DPI_BOOL;
    case TYPE_UINT8: return DPI_U8;
    case TYPE_BF16: return DPI_BF16;
    case TYPE_INT64: return DPI_I64;
    default: return DPI_DTYPE_NONE;
    }
}

class Logger : public ILogger {
  public:
    Logger(trt_log_fn sink, void *context) : sink_(sink), context_(context) {}

    void log(Severity severity, AsciiChar const *text) noexcept override
    {
        dpi_log_level level = severity == Severity::kINTERNAL_ERROR || severity == Severity::kERROR ? DPI_LOG_ERROR
                              : severity == Severity::kWARNING                                      ? DPI_LOG_WARNING
                              : severity == Severity::kINFO                                         ? DPI_LOG_INFO
                                                                                                    : DPI_LOG_DEBUG;
        if (level == DPI_LOG_ERROR)
            keep(text);
        if (sink_)
            sink_(context_, level, text);
    }

    void take(char *text, size_t size)
    {
        std::lock_guard<std::mutex> hold(lock_);
        std::snprintf(text, size, "%s", errors_);
        errors_[0] = 0;
    }

  private:
    void keep(const char *text) noexcept
    {
        std::lock_guard<std::mutex> hold(lock_);
        size_t length = std::strlen(errors_);
        if (length + 8 < sizeof errors_)
            std::snprintf(errors_ + length, sizeof errors_ - length, "%s%s", length ? "; " : "", text);
    }

    trt_log_fn sink_;
    void *context_;
    std::mutex lock_;
    char errors_[700] = "";
};

Dims dims_of(const int64_t *shape, int rank)
{
    Dims dims{};
    dims.nbDims = rank;
    for (int i = 0; i < rank; i++)
        dims.d[i] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(shape[i]);
    return dims;
}

int copy_dims(const Dims &dims, int64_t shape[DPI_MAX_RANK])
{
    if (dims.nbDims < 0 || dims.nbDims > DPI_MAX_RANK)
        return -1;
    for (int i = 0; i < dims.nbDims; i++)
        shape[i] = dims.d[i];
    return dims.nbDims;
}

} // namespace

struct trt_library {
    trt_library(const trt_entry_points &e, trt_log_fn log, void *context) : entry(e), logger(log, context) {}
    trt_entry_points entry;
    Logger logger;
    IBuilder *builder = nullptr; /* made when first needed: it takes seconds */
    IRuntime *runtime = nullptr;
};

/* Releases of TensorRT 8 differ in where the parser's destructor stands among its virtual functions; destroy() has one
 * place in all of them, and is gone from 10 on. */
struct parser_end {
    void operator()(nvonnxparser::IParser *parser) const
    {
#if NV_TENSORRT_MAJOR < 10
        parser->destroy();
#else
        delete parser;
#endif
    }
};

struct trt_network {
    trt_library *library;
    std::unique_ptr<INetworkDefinition> network;
    std::unique_ptr<nvonnxparser::IParser, parser_end> parser; /* owns the weights until the build */
    bool typed;
};

struct trt_engine {
    std::unique_ptr<ICudaEngine> engine;
    std::unique_ptr<IExecutionContext> context; /* ends first */
};

namespace {

trt_library *library_new(const trt_entry_points *entry, trt_log_fn log, void *context)
{
    return new (std::nothrow) trt_library(*entry, log, context);
}

void last_errors(trt_library *library, char *text, size_t size) { library->logger.take(text, size); }

/* ---- networks ----------------------------------------------------------------------------------------------- */

IBuilder *builder_of(trt_library *library)
{
    using create = void *(*)(void *, int32_t);
    if (!library->builder)
        library->builder = static_cast<IBuilder *>(
            reinterpret_cast<create>(library->entry.create_builder)(&library->logger, NV_TENSORRT_VERSION));
    return library->builder;
}

uint32_t creation_flags(bool typed)
{
#if NV_TENSORRT_MAJOR < 10
    (void)typed;
    return 1u << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#elif NV_TENSORRT_MAJOR == 10
    return typed ? 1u << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED) : 0u;
#else
    (void)typed;
    return 0u; /* always typed */
#endif
}

void log_parser_errors(trt_library *library, const nvonnxparser::IParser &parser)
{
    for (int i = 0; i < parser.getNbErrors(); i++) {
        const nvonnxparser::IParserError *e = parser.getError(i);
        char text[500];
        std::snprintf(text, sizeof text, "node %d: %s", e->node(), e->desc());
        library->logger.log(ILogger::Severity::kERROR, text);
    }
}

trt_network *network_parse(trt_library *library, const char *path, const void *data, size_t bytes, bool typed)
try {
    using create = void *(*)(void *, void *, int);
    IBuilder *builder = builder_of(library);
    if (!builder || !library->entry.create_parser)
        return nullptr;
    auto made = std::make_unique<trt_network>();
    made->library = library;
    made->typed = typed;
    made->network.reset(builder->createNetworkV2(creation_flags(typed)));
    if (!made->network)
        return nullptr;
    made->parser.reset(static_cast<nvonnxparser::IParser *>(reinterpret_cast<create>(library->entry.create_parser)(
        made->network.get(), &library->logger, NV_ONNX_PARSER_VERSION)));
    if (!made->parser)
        return nullptr;
    const int quiet = static_cast<int>(ILogger::Severity::kWARNING);
    bool parsed = path ? made->parser->parseFromFile(path, quiet) : made->parser->parse(data, bytes);
    if (!parsed) {
        log_parser_errors(library, *made->parser);
        return nullptr;
    }
    return made.release();
} catch (const std::exception &e) {
    library->logger.log(ILogger::Severity::kERROR, e.what());
    return nullptr;
} catch (...) {
    return nullptr;
}

void network_free(trt_network *network) { delete network; }

void describe(const ITensor &tensor, bool is_input, trt_port *port)
{
    *port = trt_port{};
    std::snprintf(port->name, sizeof port->name, "%s", tensor.getName());
    port->dtype = dtype_of(tensor.getType());
    port->is_input = is_input;
    port->is_shape = tensor.isShapeTensor();
    port->rank = copy_dims(tensor.getDimensions(), port->shape);
}

size_t network_ports(const trt_network *network, trt_port *ports, size_t capacity)
{
    size_t count = 0;
    for (int32_t i = 0; i < network->network->getNbInputs(); i++, count++)
        if (count < capacity)
            describe(*network->network->getInput(i), true, &ports[count]);
    for (int32_t i = 0; i < network->network->getNbOutputs(); i++, count++)
        if (count < capacity)
            describe(*network->network->getOutput(i), false, &ports[count]);
    return count;
}

trt_facts network_facts(const trt_network *network)
{
    trt_facts facts{};
    for (int32_t i = 0; i < network->network->getNbLayers(); i++) {
        const ILayer *layer = network->network->getLayer(i);
        facts.has_quantized |= layer->getType() == LayerType::kQUANTIZE;
        for (int32_t k = 0; k < layer->getNbOutputs(); k++) {
            const ITensor *tensor = layer->getOutput(k);
            facts.has_half |= tensor && static_cast<int32_t>(tensor->getType()) == TYPE_HALF;
            facts.has_bf16 |= tensor && static_cast<int32_t>(tensor->getType()) == TYPE_BF16;
        }
    }
    return facts;
}

bool network_keep(trt_network *network, const char *const *names, size_t count)
{
    INetworkDefinition &n = *network->network;
    for (size_t k = 0; k < count; k++) {
        bool found = false;
        for (int32_t i = 0; i < n.getNbOutputs() && !found; i++)
            found = std::strcmp(n.getOutput(i)->getName(), names[k]) == 0;
        if (!found)
            return false;
    }
    for (int32_t i = n.getNbOutputs() - 1; i >= 0; i--) {
        bool wanted = false;
        for (size_t k = 0; k < count && !wanted; k++)
            wanted = std::strcmp(n.getOutput(i)->getName(), names[k]) == 0;
        if (!wanted)
            n.unmarkOutput(*n.getOutput(i));
    }
    return true;
}

#if NV_TENSORRT_MAJOR < 11
/* Keeps float layers of a weakly typed network in float where others are half. */
void obey_graph(INetworkDefinition &network)
{
    for (int32_t i = 0; i < network.getNbLayers(); i++) {
        ILayer *layer = network.getLayer(i);
        if (layer->getType() == LayerType::kCONSTANT || layer->getNbOutputs() < 1 || !layer->getOutput(0))
            continue;
        DataType type = layer->getOutput(0)->getType();
        if (type == DataType::kFLOAT || type == DataType::kHALF)
            layer->setPrecision(type);
    }
}
#endif

void set_flags(IBuilderConfig &config, INetworkDefinition &network, unsigned flags)
{
    config.clearFlag(BuilderFlag::kTF32); /* on by default, and less than the model's own fp32 */
    if (flags & TRT_TF32)
        config.setFlag(BuilderFlag::kTF32);
#if NV_TENSORRT_MAJOR < 11
    if (flags & TRT_FP16)
        config.setFlag(BuilderFlag::kFP16);
    if (flags & TRT_INT8)
        config.setFlag(BuilderFlag::kINT8);
#if NV_TENSORRT_MAJOR > 8
    if (flags & TRT_BF16)
        config.setFlag(BuilderFlag::kBF16);
#endif
    if (flags & TRT_OBEY) {
        config.setFlag(BuilderFlag::kOBEY_PRECISION_CONSTRAINTS);
        obey_graph(network);
    }
#else
    (void)network;
#endif
}

bool add_profile(IBuilder &builder, IBuilderConfig &config, const trt_build &build)
{
    IOptimizationProfile *profile = builder.createOptimizationProfile(); /* the builder's */
    if (!profile)
        return false;
    for (size_t i = 0; i < build.profile_count; i++) {
        const trt_profile &p = build.profiles[i];
        if (!profile->setDimensions(p.name, OptProfileSelector::kMIN, dims_of(p.min, p.rank)) ||
            !profile->setDimensions(p.name, OptProfileSelector::kOPT, dims_of(p.opt, p.rank)) ||
            !profile->setDimensions(p.name, OptProfileSelector::kMAX, dims_of(p.max, p.rank)))
            return false;
    }
    return profile->isValid() && config.addOptimizationProfile(profile) >= 0;
}

bool network_build(trt_network *network, const trt_build *build, trt_blob *plan, trt_blob *timing)
try {
    IBuilder &builder = *network->library->builder;
    std::unique_ptr<IBuilderConfig> config(builder.createBuilderConfig());
    if (!config)
        return false;
    set_flags(*config, *network->network, build->flags);
    if (build->workspace_bytes)
        config->setMemoryPoolLimit(MemoryPoolType::kWORKSPACE, build->workspace_bytes);
    if (build->level >= 0)
        config->setBuilderOptimizationLevel(build->level);
    std::unique_ptr<ITimingCache> cache(config->createTimingCache(build->timing, build->timing_bytes));
    if (!cache) /* one of another version: begin anew */
        cache.reset(config->createTimingCache(nullptr, 0));
    if (cache)
        config->setTimingCache(*cache, false);
    if (build->profile_count && !add_profile(builder, *config, *build))
        return false;
    IHostMemory *made = builder.buildSerializedNetwork(*network->network, *config);
    if (!made)
        return false;
    *plan = trt_blob{made->data(), made->size(), made};
    if (timing) {
        IHostMemory *times = cache ? cache->serialize() : nullptr;
        *timing = times ? trt_blob{times->data(), times->size(), times} : trt_blob{};
    }
    return true;
} catch (const std::exception &e) {
    network->library->logger.log(ILogger::Severity::kERROR, e.what());
    return false;
} catch (...) {
    return false;
}

void blob_free(trt_blob *blob)
{
    delete static_cast<IHostMemory *>(blob->owner);
    *blob = trt_blob{};
}

/* ---- engines ------------------------------------------------------------------------------------------------ */

trt_engine *engine_load(trt_library *library, const void *plan, size_t bytes)
try {
    using create = void *(*)(void *, int32_t);
    if (!library->runtime)
        library->runtime = static_cast<IRuntime *>(
            reinterpret_cast<create>(library->entry.create_runtime)(&library->logger, NV_TENSORRT_VERSION));
    if (!library->runtime)
        return nullptr;
    auto made = std::make_unique<trt_engine>();
    made->engine.reset(library->runtime->deserializeCudaEngine(plan, bytes));
    if (!made->engine)
        return nullptr;
    made->context.reset(made->engine->createExecutionContext());
    return made->context ? made.release() : nullptr;
} catch (const std::exception &e) {
    library->logger.log(ILogger::Severity::kERROR, e.what());
    return nullptr;
} catch (...) {
    return nullptr;
}

void engine_free(trt_engine *engine) { delete engine; }

size_t engine_ports(const trt_engine *engine, trt_port *ports, size_t capacity)
{
    const ICudaEngine &e = *engine->engine;
    size_t count = static_cast<size_t>(e.getNbIOTensors());
    for (size_t i = 0; i < count && i < capacity; i++) {
        const char *name = e.getIOTensorName(static_cast<int32_t>(i));
        ports[i] = trt_port{};
        std::snprintf(ports[i].name, sizeof ports[i].name, "%s", name);
        ports[i].dtype = dtype_of(e.getTensorDataType(name));
        ports[i].is_input = e.getTensorIOMode(name) == TensorIOMode::kINPUT;
        ports[i].is_shape = e.isShapeInferenceIO(name);
        ports[i].rank = copy_dims(e.getTensorShape(name), ports[i].shape);
    }
    return count;
}

bool engine_profile(const trt_engine *engine, const char *name, int64_t min[DPI_MAX_RANK], int64_t max[DPI_MAX_RANK])
{
    const ICudaEngine &e = *engine->engine;
    return copy_dims(e.getProfileShape(name, 0, OptProfileSelector::kMIN), min) >= 0 &&
           copy_dims(e.getProfileShape(name, 0, OptProfileSelector::kMAX), max) >= 0;
}

uint64_t engine_memory(const trt_engine *engine)
{
#if NV_TENSORRT_MAJOR < 10
    return engine->engine->getDeviceMemorySize();
#else
    return static_cast<uint64_t>(engine->engine->getDeviceMemorySizeV2());
#endif
}

bool set_shape(trt_engine *engine, const char *input, const int64_t *shape, int rank)
{
    return engine->context->setInputShape(input, dims_of(shape, rank));
}

bool get_shape(const trt_engine *engine, const char *output, int64_t shape[DPI_MAX_RANK], int *rank)
{
    *rank = copy_dims(engine->context->getTensorShape(output), shape);
    for (int i = 0; i < *rank; i++)
        if (shape[i] < 0)
            *rank = -1;
    return *rank >= 0;
}

bool set_address(trt_engine *engine, const char *name, void *memory)
{
    return engine->context->setTensorAddress(name, memory);
}

bool enqueue(trt_engine *engine, void *stream) { return engine->context->enqueueV3(static_cast<cudaStream_t>(stream)); }

constexpr trt_shim SHIM = {
    TRT_SHIM_VERSION,
    NV_TENSORRT_MAJOR,
    NV_TENSORRT_MAJOR >= 11,
    NV_TENSORRT_MAJOR >= 10,
    NV_TENSORRT_MAJOR > 8,
    library_new,
    last_errors,
    network_parse,
    network_free,
    network_ports,
    network_facts,
    network_keep,
    network_build,
    blob_free,
    engine_load,
    engine_free,
    engine_ports,
    engine_profile,
    engine_memory,
    set_shape,
    get_shape,
    set_address,
    enqueue,
};

} // namespace

extern "C" __attribute__((visibility("default"))) const trt_shim *dpi_tensorrt_shim(void) { return &SHIM; }
