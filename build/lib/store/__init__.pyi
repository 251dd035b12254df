from .layout.tensors import from_storage as from_storage
from .projectors import project_image as project_image
from .questions.question import read_questions as read_questions
from .reading.by_name import read_features as read_features
from .reading.dataset import StoreDataset as StoreDataset
from .reading.question_dataset import QuestionDataset as QuestionDataset
from .reading.reader import FeatureStore as FeatureStore
